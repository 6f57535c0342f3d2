"""Executed notebooks to pages, their index and comparison; cards and explorers."""
