"""What each notebook runs: the rooms of the library composed into one study a notebook."""
