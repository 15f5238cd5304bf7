"""How a run held its base: which weights bitsandbytes had, and in what precision the others lay.

Usage: ``held = held_by(manifest, blueprint(manifest.recipe.base))``
"""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from qlmm.artifacts.deltas import AsTrained
from qlmm.artifacts.manifest import Manifest
from qlmm.core.errors import ModelError
from qlmm.model.base import Blueprint
from qlmm.model.precision import Precision
from qlmm.model.quantise import skip_names

__all__ = ["held_by"]


def held_by(manifest: Manifest, shape: Blueprint) -> AsTrained:
    """The base's form in a run, from the adapter's manifest and the base's configuration.

    Raises:
        ModelError: A031 for a language model whose layers bitsandbytes stores transposed.
    """
    base = manifest.recipe.base
    dtype = Precision("cuda", manifest.precision).compute
    if base.quantize == "none":
        return AsTrained(dtype, "none", frozenset())
    language = {name: module for name, module in shape.model.named_modules() if _in_language(shape, name)}
    if any(isinstance(module, Conv1D) for module in language.values()):
        raise ModelError.one(
            "A031",
            f"{type(shape.model).__name__} has transposed linear layers, which cannot be quantised again one by one",
            help="merge with --onto original",
        )
    # An assembled base quantises its language model before it is assembled, where only the head is kept.
    kept = set(skip_names(shape.model, shape.parts)) if base.model is not None else set()
    linear = {name for name, module in language.items() if isinstance(module, nn.Linear)}
    return AsTrained(dtype, base.quantize, frozenset(f"{name}.weight" for name in linear - kept))


def _in_language(shape: Blueprint, name: str) -> bool:
    try:
        return shape.parts.of(name) == "language"
    except KeyError:  # a module around several parts
        return False
