"""The adapter folder: written, read, verified."""
