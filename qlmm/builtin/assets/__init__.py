"""Real weights and pictures that ship inside registry packages: one a file, ``-`` in the name is ``_`` in the file.

Usage: ``qlmm.builtin.registry.path("smollm2-135m")``
"""
