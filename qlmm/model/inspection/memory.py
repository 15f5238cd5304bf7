"""How much memory a run will need, from configurations alone; every figure is an estimate.

The arithmetic is textbook: weights by their storage; 4 bytes of master, 4 of gradient and 8 of Adam for each trained
weight; activations after Korthikanti et al. 2022 (arXiv 2205.05198, equation 2): 34 bytes a token and width in 16-bit.

Usage: ``need = estimate(blueprint.model, parts, placement, Load(…)); sum(need.values())``
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from qlmm.model.numerics.precision import Precision
from qlmm.model.numerics.quantization import QuantKind, skip_names
from qlmm.model.parts.split import PART_NAMES, PartName, Parts
from qlmm.model.peft.adapter import Placement

__all__ = ["Load", "estimate", "frozen_bytes", "lora_sizes", "trained_sizes"]

# 4 bits a weight, 8-bit constants per 64 weights, fp32 constants per 256 of those: 4.127 bits (QLoRA, section 3).
_BITS = {"nf4": 4.127, "fp4": 4.127, "int8": 8.06}
_ACTIVATION_BYTES_16 = 34
# TRL's fused head makes logits in tiles of at most this many positions, with one copy for the gradient.
_LOGIT_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Load:
    """What is in memory during a step.

    Attributes:
        rows: per forward pass.
        tokens: tokens of a long row (the 95th percentile), visual ones included.
        quantize: storage of the language model's linear layers.
        checkpointing: whether only layer inputs are kept for the backward pass.
        small_optimizer: whether Adam's moments are kept in 8 bits.
        reference: whether there is a frozen copy of what is trained.
    """

    rows: int
    tokens: int
    precision: Precision
    quantize: QuantKind
    checkpointing: bool
    small_optimizer: bool
    reference: bool = False


def estimate(model: PreTrainedModel, parts: Parts, placement: Placement, load: Load) -> dict[str, int]:
    """Bytes by purpose: frozen weights, reference, trained weights, gradients and optimizer, activations, logits."""
    trained, computed = sum(trained_sizes(model, placement)), load.precision.compute.itemsize
    moments = 2 if load.small_optimizer else 8
    text = model.config.get_text_config()
    width, layers = text.hidden_size, text.num_hidden_layers
    per_layer = load.rows * load.tokens * width * _ACTIVATION_BYTES_16 * computed // 2
    kept = load.rows * load.tokens * width * computed
    return {
        "frozen weights": sum(sum(stored.values()) for stored in frozen_bytes(model, parts, load).values()),
        **({"reference": trained * 4} if load.reference else {}),
        # fp32 masters, and under autocast a copy of each in the compute precision.
        "trained weights": trained * (4 if computed == 4 else 4 + computed),
        "gradients and optimizer": trained * (4 + moments),
        "activations": layers * kept + per_layer if load.checkpointing else layers * per_layer,
        "logits": min(load.rows * load.tokens, _LOGIT_ROWS) * text.vocab_size * 4 * 2,
    }


def frozen_bytes(model: PreTrainedModel, parts: Parts, load: Load) -> dict[PartName, dict[str, int]]:
    """Bytes of the base in memory, by part and storage; only the language model has quantised weights."""
    quantised = set()
    if load.quantize != "none":
        kept = set(skip_names(model, parts))
        linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
        quantised = {f"{name}.weight" for name in linear if name not in kept}
    plain: str = load.precision.name
    weights: dict[PartName, Counter[str]] = {part: Counter({plain: 0}) for part in PART_NAMES}
    for name, parameter in model.named_parameters():
        weights[parts.of(name)][load.quantize if name in quantised else plain] += parameter.numel()
    bits: dict[str, float] = {plain: load.precision.compute.itemsize * 8, **_BITS}
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
