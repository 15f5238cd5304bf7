"""How much memory a run will need, from configurations alone; every figure is an estimate and called one.

The arithmetic is textbook: weights by their storage; 4 bytes of master, 4 of gradient and 8 of Adam for each trained
weight; activations after Korthikanti et al. 2022 (arXiv 2205.05198, equation 2): 34 bytes a token and width in 16-bit.

Usage: ``need = estimate(blueprint.model, parts, placement, Load(…)); sum(need.values())``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from qlmm.model.numerics.quantization import QuantKind, skip_names
from qlmm.model.parts.split import PartName, Parts
from qlmm.model.peft.adapter import Placement

__all__ = ["Load", "estimate", "lora_parameters", "trained_parameters", "trained_sizes"]

# 4 bits a weight, 8-bit constants per 64 weights, fp32 constants per 256 of those: 4.127 bits (QLoRA, section 3).
_BITS = {"nf4": 4.127, "fp4": 4.127, "int8": 8.06}
_ACTIVATION_BYTES_16 = 34
# TRL's fused head makes logits in tiles of at most this many positions, with one copy for the gradient.
_LOGIT_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Load:
    """What a step holds at once.

    Attributes:
        rows: rows per forward pass.
        tokens: tokens of a long row (the 95th percentile), visual ones included.
        compute: dtype of matrix products.
        quantize: storage of the language model's linear layers.
        checkpointing: whether only layer inputs are kept for the backward pass.
        small_optimizer: whether Adam's moments are kept in 8 bits.
        reference: whether a frozen copy of what is trained stands beside it.
    """

    rows: int
    tokens: int
    compute: torch.dtype
    quantize: QuantKind
    checkpointing: bool
    small_optimizer: bool
    reference: bool = False


def estimate(model: PreTrainedModel, parts: Parts, placement: Placement, load: Load) -> dict[str, int]:
    """Bytes by purpose: frozen weights, reference, trained weights, gradients and optimizer, activations, logits."""
    trained = trained_parameters(model, placement)
    moments = 2 if load.small_optimizer else 8
    text = model.config.get_text_config()
    width, layers = text.hidden_size, text.num_hidden_layers
    per_layer = load.rows * load.tokens * width * _ACTIVATION_BYTES_16 * load.compute.itemsize // 2
    kept = load.rows * load.tokens * width * load.compute.itemsize
    return {
        "frozen weights": frozen_bytes(model, parts, load),
        **({"reference": trained * 4} if load.reference else {}),
        # fp32 masters, and under autocast a copy of each in the compute precision.
        "trained weights": trained * (4 if load.compute.itemsize == 4 else 4 + load.compute.itemsize),
        "gradients and optimizer": trained * (4 + moments),
        "activations": layers * kept + per_layer if load.checkpointing else layers * per_layer,
        "logits": min(load.rows * load.tokens, _LOGIT_ROWS) * text.vocab_size * 4 * 2,
    }


def frozen_bytes(model: PreTrainedModel, parts: Parts, load: Load) -> int:
    """Bytes of the base as it will lie in memory."""
    quantised = set()
    if load.quantize != "none":
        kept = set(skip_names(model, parts))
        linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
        quantised = {f"{name}.weight" for name in linear if name not in kept}
    bits = _BITS.get(load.quantize, 16)
    whole = load.compute.itemsize * 8
    total: float = sum(p.numel() * (bits if name in quantised else whole) for name, p in model.named_parameters())
    return round(total / 8)


def trained_parameters(model: PreTrainedModel, placement: Placement, part: PartName | None = None) -> int:
    """How many weights are trained, in one part or in all: LoRA pairs, modules trained whole, bare parameters."""
    return sum(trained_sizes(model, placement, part))


def trained_sizes(model: PreTrainedModel, placement: Placement, part: PartName | None = None) -> list[int]:
    """Weights of each trained tensor."""
    sizes = _lora_sizes(model, placement, part)
    for name in placement.whole:
        if _wanted(placement, name, part):
            inside = model.get_submodule(name).named_parameters()
            sizes += [parameter.numel() for own, parameter in inside if f"{name}.{own}" not in placement.unread]
    if placement.trains_bare and part in (None, "connector"):
        sizes += [model.get_parameter(name).numel() for name in placement.bare]
    return sizes


def lora_parameters(model: nn.Module, placement: Placement) -> int:
    """Weights of all LoRA pairs: rank times (inputs + outputs) of each adapted layer (arXiv 2106.09685, section 4)."""
    return sum(_lora_sizes(model, placement, None))


def _lora_sizes(model: nn.Module, placement: Placement, part: PartName | None) -> list[int]:
    layers: list[Any] = [model.get_submodule(name) for name in placement.lora if _wanted(placement, name, part)]
    sizes = [placement.rank * int(side) for layer in layers for side in (layer.in_features, layer.out_features)]
    experts = [model.get_parameter(name).shape for name in placement.experts if _wanted(placement, name, part)]
    return sizes + [placement.rank * count * side for count, *sides in experts for side in sides]


def _wanted(placement: Placement, name: str, part: PartName | None) -> bool:
    return part is None or placement.parts.of(name) == part
