"""Which weights are stored in 4 or 8 bits: the language model's linear layers, and nothing else, by full name.

A bare name in transformers' skip list does not match nested modules, so that the tower and the connector would be
quantised silently; and any skip list switches off the automatic skip of the output head. So the list is computed from
the model's parts.

Usage: ``AutoModel….from_pretrained(id, quantization_config=quantization("nf4", keep=skip_names(meta_model), …))``
"""

from __future__ import annotations

from typing import Literal

import bitsandbytes
import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from qlmm.compat.bitsandbytes_private import never_repack
from qlmm.core.errors import ModelError
from qlmm.model.parts.experts import fused_experts, routers
from qlmm.model.parts.split import Parts

__all__ = ["QuantKind", "check_experts", "keep_trainable", "quantization", "skip_names"]

QuantKind = Literal["none", "int8", "nf4", "fp4"]


def quantization(kind: QuantKind, *, keep: list[str], compute: torch.dtype) -> BitsAndBytesConfig | None:
    """The bitsandbytes settings for a recipe's `base.quantize`; double quantisation as in QLoRA, arXiv 2305.14314.

    ``keep`` are full names of linear layers that stay as they are. A layer dequantises to ``compute``: fp32 on CPU,
    where bf16 is emulated and far slower.
    """
    if kind == "none":
        return None
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=keep)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=keep,
    )


def keep_trainable(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for its CPU inference kernel, which has no backward pass.

    On CPUs with AVX512-BF16 the first forward in evaluation mode repacks a layer's weights in place and for good;
    training afterwards runs without an error, faster than before, and no gradient passes the layer.
    """
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            never_repack(module)


def skip_names(model: PreTrainedModel, parts: Parts) -> list[str]:
    """Full names of every linear layer that is not the language model's, and of routers; the meta device is enough."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    kept = routers(model, parts)
    return sorted(name for name in linear if name in kept or parts.of(name) != "language")


def check_experts(model: PreTrainedModel, parts: Parts, kind: QuantKind) -> None:
    """Refuse (M035) to quantise a model whose fused experts, most of its weights, would stay in 16 bits."""
    fused = set(fused_experts(model, parts))
    if kind == "none" or not fused:
        return
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if parts.of(name) == "language"}
    experts, whole = sum(sizes[name] for name in fused), sum(sizes.values())
    raise ModelError.one(
        "M035",
        f"bitsandbytes cannot quantise fused experts, which are {experts / whole:.0%} of this language "
        f"model's {whole / 1e9:,.2f} billion weights",
        help="set base.quantize=none if it fits the GPU in 16 bits, or choose a dense model",
        key="base.quantize",
    )
