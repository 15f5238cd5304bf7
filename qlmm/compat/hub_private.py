"""What of huggingface_hub can only be changed through its constants.

Usage: ``with without_xet(): api.create_commit(…)``
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants

__all__ = ["without_xet"]


@contextmanager
def without_xet() -> Iterator[None]:
    """Transfer over plain HTTPS: Xet words refusals in its own way, and asks again for minutes without one.

    Read from huggingface_hub 2.4, which looks at the constant before every file. Public instead: an argument of
    ``HfApi``; the variable HF_HUB_DISABLE_XET is read only once, when huggingface_hub is imported.
    """
    before, constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_XET, True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before
