"""Texts: where they come from, packing into contexts, splits."""
