"""Activations on disk: captured, stored, read back."""
