"""Every environment variable that qlmm reads, in one table that ``qlmm doctor`` prints.

Usage: ``if env.flag("QLMM_DEBUG"): ...``
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["VARIABLES", "Variable", "flag", "home", "neutral", "not_obeyed", "numeric", "preset", "shown"]


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable: what it does, its default, and whether its value is a secret."""

    name: str
    doc: str
    default: str | None = None
    secret: bool = False


VARIABLES: tuple[Variable, ...] = (
    Variable("QLMM_HOME", "Folder for packaged weights and pictures that were fetched.", "~/.cache/qlmm"),
    Variable("QLMM_DEBUG", "1: print the full trace of an unexpected error."),
    Variable("NO_COLOR", "Set to anything: no colour."),
    Variable("FORCE_COLOR", "Set to anything: colour although the output is not a terminal."),
    Variable("TERM", "dumb: no progress bar."),
    Variable("CI", "1, as build services set it: plain lines instead of a progress bar."),
    Variable("COLUMNS", "Width of the output, in characters."),
    Variable("HF_TOKEN", "Access to gated or private models of the Hub.", secret=True),
    Variable("HF_HOME", "Folder of the Hub's cache and token.", "~/.cache/huggingface"),
    Variable("HF_HUB_CACHE", "Folder of downloaded models.", "$HF_HOME/hub"),
    Variable("HF_HUB_OFFLINE", "1: the Hub is never asked."),
    Variable("HF_ENDPOINT", "Address of the Hub.", "https://huggingface.co"),
    Variable("CUDA_VISIBLE_DEVICES", "Which GPUs may be used."),
    Variable("WANDB_API_KEY", "Access to Weights & Biases, for output.trackers.", secret=True),
    Variable("WANDB_MODE", "offline: Weights & Biases writes to disk only."),
    Variable("WANDB_PROJECT", "Project that Weights & Biases files runs under."),
    Variable("TRACKIO_PROJECT", "Project that trackio files runs under."),
    Variable("MLFLOW_TRACKING_URI", "Where MLflow writes.", "./mlruns"),
)
# Variables of the libraries below qlmm. A recipe has what accelerate's would change, so that they are not obeyed;
# the others change how the same numbers are computed.
_NOT_OBEYED = ("ACCELERATE_",)
_NUMERIC = (
    "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "NVIDIA_TF32_OVERRIDE", "CUBLAS_", "CUDNN_", "ROCBLAS_", "MIOPEN_",
    "MKL_CBWR", "ONEDNN_", "DNNL_", "FLASH_ATTENTION_", "XLA_",
)  # fmt: skip
_NO_NUMBERS = {"TORCH_SHOW_CPP_STACKTRACES", "TORCH_CUDA_ARCH_LIST"}
# Where things lie; torch sets such variables itself.
_PLACES = ("_DIR", "_HOME", "_PATH", "_LOGS")
_BY_NAME = {variable.name: variable for variable in VARIABLES}
_OFF = {"", "0", "false", "no", "off"}


def flag(name: str) -> bool:
    """Whether a variable of the table is switched on; 0, false, no, off and nothing are off."""
    return os.environ.get(_BY_NAME[name].name, "").strip().lower() not in _OFF


def preset(name: str, value: str) -> None:
    """Set a variable that a library reads, for this process and those it starts, unless the user has set it."""
    os.environ.setdefault(name, value)


def numeric() -> dict[str, str]:
    """Variables that are set and that libraries may compute other numbers by, in order of their names."""
    found = _starting(_NUMERIC).items()
    return {name: value for name, value in found if name not in _NO_NUMBERS and not name.endswith(_PLACES)}


def not_obeyed() -> list[str]:
    """Names of the variables that are set and that a run hides from the libraries."""
    return list(_starting(_NOT_OBEYED))


@contextmanager
def neutral() -> Iterator[None]:
    """Hide variables that would overrule the recipe until the block is left."""
    hidden = {name: os.environ.pop(name) for name in not_obeyed()}
    try:
        yield
    finally:
        for name in not_obeyed():
            del os.environ[name]
        os.environ.update(hidden)


def _starting(prefixes: tuple[str, ...]) -> dict[str, str]:
    return {name: os.environ[name] for name in sorted(os.environ) if name.startswith(prefixes)}


def home() -> Path:
    """Folder for what qlmm fetches and keeps: ``QLMM_HOME`` or ``~/.cache/qlmm``."""
    return Path(os.environ.get("QLMM_HOME") or "~/.cache/qlmm").expanduser()


def shown(variable: Variable) -> str:
    """The value as it may be printed: of a secret only that it is set."""
    value = os.environ.get(variable.name)
    if value is None:
        return f"unset (default {variable.default})" if variable.default else "unset"
    return "set, not shown" if variable.secret else value
