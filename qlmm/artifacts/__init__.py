"""A run -> what others can use: the adapter folder, its manifest and card, and the way back to a model.

Usage: ``from qlmm.artifacts.adapter.load import load``
"""
