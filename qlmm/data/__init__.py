"""Rows -> samples -> batches; nothing here knows a model, only a processor (see ``contract.py``).

Usage: ``from qlmm.data.load import load_samples``
"""
