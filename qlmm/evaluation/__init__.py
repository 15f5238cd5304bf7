"""What a model does on held-out rows, in numbers and pictures.

Usage: ``from qlmm.evaluation.heldout import HeldOut``
"""
