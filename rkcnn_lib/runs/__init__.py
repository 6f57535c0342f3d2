"""Parameters, run folders with gates, finished units, and many cells at once."""
