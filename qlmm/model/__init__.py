"""Recipe sections -> a model in parts: blueprint, weights, quantisation, adapter.

Usage: ``from qlmm.model.loading.base import Base``
"""
