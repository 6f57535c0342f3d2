"""Toy models, sparse and clustered features, planted dictionaries."""
