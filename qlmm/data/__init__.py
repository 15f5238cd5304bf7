"""Rows -> samples -> batches; a processor is all that is known of a model.

Usage: ``from qlmm.data.reading.dataset import load_samples``
"""
