"""Preference pairs from a model's own answers."""
