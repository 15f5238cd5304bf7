"""How a run held its base: which weights bitsandbytes had, and in what precision the others lay.

Usage: ``held = held_by(manifest, base)``
"""

from __future__ import annotations

from torch import nn
from transformers import Conv1D

from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.merge.deltas import AsTrained
from qlmm.model.loading.base import Base
from qlmm.model.numerics.precision import Precision

__all__ = ["held_by"]


def held_by(manifest: Manifest, base: Base) -> AsTrained:
    """The base's form in a run, from the adapter's manifest and the base's configuration."""
    quantize, shape = manifest.recipe.base.quantize, base.shape
    dtype = Precision("cuda", manifest.precision).compute
    if quantize == "none":
        return AsTrained(dtype, "none", frozenset())
    # Classes derived from these are left alone by bitsandbytes' loader.
    linear = {name for name, module in shape.model.named_modules() if type(module) in (nn.Linear, Conv1D)}
    language = {name for name in linear - base.unquantised if shape.parts.of(name) == "language"}
    return AsTrained(dtype, quantize, frozenset(f"{name}.weight" for name in language))
