"""Parameter-efficient fine-tuning of multimodal language models on one consumer GPU.

Importing this package imports nothing heavy; its public names load what they need when they are first used.

Usage: ``import qlmm; loaded = qlmm.load_recipe("recipes/owl_lora.yaml")``
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qlmm.core.version import __version__ as __version__

if TYPE_CHECKING:
    from qlmm.api import finetune as finetune
    from qlmm.artifacts.adapter.load import load as load
    from qlmm.core.errors import QlmmError as QlmmError
    from qlmm.recipe.load import load_recipe as load_recipe

__all__ = ["QlmmError", "__version__", "finetune", "load", "load_recipe"]

_HOMES = {
    "QlmmError": "qlmm.core.errors",
    "finetune": "qlmm.api",
    "load": "qlmm.artifacts.adapter.load",
    "load_recipe": "qlmm.recipe.load",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(importlib.import_module(_HOMES[name]))[name]


def __dir__() -> list[str]:
    return sorted(__all__)
