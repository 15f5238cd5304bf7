"""Recipe sections -> a model in parts: blueprint, weights, quantisation, adapter.

Usage: ``from qlmm.model.base import blueprint, load_model``
"""
