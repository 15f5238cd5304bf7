"""Data formats, one per file: the file name is the format's name in a recipe.

Usage: ``qlmm.core.naming.load("qlmm.data.formats", "llava", "FORMAT", Format)``
"""
