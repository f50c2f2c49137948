"""Versions, for code that compares them."""
