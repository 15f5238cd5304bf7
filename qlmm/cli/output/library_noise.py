"""The process-wide switches that keep libraries quiet: deprecations, bars of loading, missing kernels.

Usage: ``quiet()`` at the start of a program, before a library is imported
"""

from __future__ import annotations

import sys
import warnings

from qlmm.core import env

__all__ = ["quiet"]

_LOGGERS = ("bitsandbytes", "accelerate", "peft", "trl", "datasets")
# Libraries read these when they are imported; who has set one of them wants it so.
_VARIABLES = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def quiet() -> None:
    """Leave only errors of the libraries below; their warnings that matter are our own checks and promises."""
    import logging

    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|transformers|peft|trl|accelerate)\b")
    for variable, value in _VARIABLES.items():
        env.preset(variable, value)
    # A program that imported transformers first, such as a benchmark, has missed the variables.
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
