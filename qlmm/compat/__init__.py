"""Private names of dependencies, one file a library: each with the release it was read from and its public successor.

``tests/contract/test_compat.py`` calls each of them on a tiny object, so that an upgrade fails there first.

Usage: ``from qlmm.compat.transformers_private import attention_of``
"""
