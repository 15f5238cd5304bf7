"""Turning down what the libraries below say about themselves: deprecations, progress of loading, missing kernels.

A run's own lines are what a user should see. Downloads keep their progress, since their size matters.

Usage: ``quiet()`` before a command imports its heavy parts.
"""

from __future__ import annotations

import logging
import warnings

__all__ = ["quiet"]

_CHATTY = ("bitsandbytes", "accelerate", "peft", "trl", "datasets")


def quiet() -> None:
    """Leave only errors of the libraries below; their warnings that matter are our own checks and promises."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|transformers|peft|trl|accelerate)\b")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
