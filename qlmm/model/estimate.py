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

from qlmm.model.adapters import Placement
from qlmm.model.parts import Parts, linear_names
from qlmm.model.quantise import QuantKind

__all__ = ["Load", "estimate", "lora_parameters", "trained_parameters"]

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
    """

    rows: int
    tokens: int
    compute: torch.dtype
    quantize: QuantKind
    checkpointing: bool
    small_optimizer: bool


def estimate(model: PreTrainedModel, parts: Parts, placement: Placement, load: Load) -> dict[str, int]:
    """Bytes by purpose: frozen weights, trained weights, gradients and optimizer, activations, logits."""
    trained = trained_parameters(model, placement)
    moments = 2 if load.small_optimizer else 8
    text = model.config.get_text_config()
    width, layers = text.hidden_size, text.num_hidden_layers
    per_layer = load.rows * load.tokens * width * _ACTIVATION_BYTES_16 * load.compute.itemsize // 2
    kept = load.rows * load.tokens * width * load.compute.itemsize
    return {
        "frozen weights": frozen_bytes(model, parts, load),
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
        quantised = {f"{name}.weight" for module in parts.language for name in linear_names(model, module)}
    bits = _BITS.get(load.quantize, 16)
    whole = load.compute.itemsize * 8
    total: float = sum(p.numel() * (bits if name in quantised else whole) for name, p in model.named_parameters())
    return round(total / 8)


def trained_parameters(model: PreTrainedModel, placement: Placement) -> int:
    """How many weights are trained: LoRA pairs plus modules trained whole."""
    whole: int = sum(p.numel() for name in placement.whole for p in model.get_submodule(name).parameters())
    return whole + lora_parameters(model, placement)


def lora_parameters(model: nn.Module, placement: Placement) -> int:
    """Weights of all LoRA pairs: rank times (inputs + outputs) of each adapted layer (arXiv 2106.09685, section 4)."""
    layers: list[Any] = [model.get_submodule(name) for name in placement.lora]
    sides = [int(layer.in_features) + int(layer.out_features) for layer in layers]
    return placement.rank * sum(sides)
