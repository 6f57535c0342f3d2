"""Feature cards: what each latent of an SAE reads, writes and came from, as data that pages and widgets draw."""

CARDS = "application/vnd.rkcnn.cards+json"  # an output's mime type: the record that book.py describes
