"""There are no threads."""
