"""Rows -> samples -> batches; nothing here knows a model, only a processor (see ``contract.py``).

Usage: ``from qlmm.data.reading.dataset import load_samples``
"""
