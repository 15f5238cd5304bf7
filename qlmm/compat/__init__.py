"""Private names of dependencies, one file a library: nothing else in qlmm imports or touches one.

Every name states the release it was read from and which public name would replace it. ``tests/contract/test_compat.py``
calls each of them on a tiny object, so that an upgrade fails there first, in one line.

Usage: ``from qlmm.compat.transformers_private import attention_of``
"""
