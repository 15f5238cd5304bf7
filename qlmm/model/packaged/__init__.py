"""Real weights and pictures that ship inside registry packages: one a file, ``-`` in the name is ``_`` in the file.

Usage: ``qlmm.model.builtin.path("smollm2-135m")``
"""
