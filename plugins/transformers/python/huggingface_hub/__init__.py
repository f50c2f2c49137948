"""Only what configuration classes use: strict dataclasses. Nothing talks to the hub."""
