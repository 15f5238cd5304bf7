"""How a run held its base: which weights bitsandbytes had, and in what precision the others lay.

Usage: ``held = held_by(manifest, blueprint(manifest.recipe.base))``
"""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.merge.deltas import AsTrained
from qlmm.model.loading.base import Blueprint
from qlmm.model.numerics.precision import Precision
from qlmm.model.numerics.quantization import skip_names

__all__ = ["held_by"]


def held_by(manifest: Manifest, shape: Blueprint) -> AsTrained:
    """The base's form in a run, from the adapter's manifest and the base's configuration."""
    base = manifest.recipe.base
    dtype = Precision("cuda", manifest.precision).compute
    if base.quantize == "none":
        return AsTrained(dtype, "none", frozenset())
    # Classes derived from these are left alone by bitsandbytes' loader.
    linear = {name for name, module in shape.model.named_modules() if type(module) in (nn.Linear, Conv1D)}
    # An assembled base quantises its language model before it is assembled, where only the head is kept.
    kept = set(skip_names(shape.model, shape.parts)) if base.model is not None else set()
    language = {name for name in linear - kept if shape.parts.of(name) == "language"}
    return AsTrained(dtype, base.quantize, frozenset(f"{name}.weight" for name in language))
