"""Answers of a model: one, or several that are drawn."""
