"""What a model's weights take: by part and storage, and how many are trained; the meta device is enough.

Usage: ``frozen_bytes(model, parts, precision, "nf4"); sum(trained_sizes(model, placement))``
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from qlmm.model.numerics.precision import Precision
from qlmm.model.numerics.quantization import QuantKind, skip_names
from qlmm.model.parts.split import PART_NAMES, PartName, Parts
from qlmm.model.peft.adapter import Placement

__all__ = ["CODE_BITS", "STORED_BITS", "frozen_bytes", "lora_sizes", "quantised_names", "trained_sizes"]

# Of each weight alone; and with 8-bit constants per 64 weights and fp32 constants per 256 of those: 4.127 bits (QLoRA,
# section 3).
CODE_BITS = {"nf4": 4, "fp4": 4, "int8": 8}
STORED_BITS = {"nf4": 4.127, "fp4": 4.127, "int8": 8.06}


def quantised_names(model: PreTrainedModel, parts: Parts, quantize: QuantKind) -> set[str]:
    """Names of the weights that are stored in 4 or 8 bits: the language model's linear layers."""
    if quantize == "none":
        return set()
    kept = set(skip_names(model, parts))
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {f"{name}.weight" for name in linear if name not in kept}


def frozen_bytes(
    model: PreTrainedModel, parts: Parts, precision: Precision, quantize: QuantKind
) -> dict[PartName, dict[str, int]]:
    """Bytes of the base in memory, by part and storage; only the language model has quantised weights."""
    quantised = quantised_names(model, parts, quantize)
    plain: str = precision.name
    weights: dict[PartName, Counter[str]] = {part: Counter({plain: 0}) for part in PART_NAMES}
    for name, parameter in model.named_parameters():
        weights[parts.of(name)][quantize if name in quantised else plain] += parameter.numel()
    bits: dict[str, float] = {plain: precision.compute.itemsize * 8, **STORED_BITS}
    found: dict[PartName, dict[str, int]] = {}
    for part, counts in weights.items():
        quantised_first = sorted(counts.items(), key=lambda one: one[0] == plain)
        found[part] = {storage: round(count * bits[storage] / 8) for storage, count in quantised_first}
    return found


def trained_sizes(model: PreTrainedModel, placement: Placement, part: PartName | None = None) -> list[int]:
    """Weights of each trained tensor, in one part or in all: LoRA pairs, modules trained whole, bare parameters."""
    sizes = lora_sizes(model, placement, part)
    for name in placement.whole:
        if _wanted(placement, name, part):
            inside = model.get_submodule(name).named_parameters()
            sizes += [parameter.numel() for own, parameter in inside if f"{name}.{own}" not in placement.unread]
    if placement.trains_bare and part in (None, "connector"):
        sizes += [model.get_parameter(name).numel() for name in placement.bare]
    return sizes


def lora_sizes(model: nn.Module, placement: Placement, part: PartName | None = None) -> list[int]:
    """Weights of LoRA: rank times inputs, rank times outputs of each adapted layer (arXiv 2106.09685, section 4)."""
    layers: list[Any] = [model.get_submodule(name) for name in placement.lora if _wanted(placement, name, part)]
    sizes = [placement.rank * int(side) for layer in layers for side in (layer.in_features, layer.out_features)]
    experts = [model.get_parameter(name).shape for name in placement.experts if _wanted(placement, name, part)]
    return sizes + [placement.rank * count * side for count, *sides in experts for side in sides]


def _wanted(placement: Placement, name: str, part: PartName | None) -> bool:
    return part is None or placement.parts.of(name) == part
