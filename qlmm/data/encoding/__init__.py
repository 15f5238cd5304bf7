"""Samples -> token ids, labels and pixels."""
