"""Undocumented attributes that bitsandbytes puts on its layers and weights.

Usage: ``state = quant_state(parameter)``
"""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["never_repack", "quant_state"]


def never_repack(layer: Any) -> None:
    """Keep a 4-bit layer's weights in the layout that can be trained; decision 002 explains what would happen.

    Read from bitsandbytes 0.50 (``Linear4bit.support_avx512bf16_for_cpu``). Public instead: an argument of the layer.
    """
    layer.support_avx512bf16_for_cpu = False


def quant_state(parameter: nn.Parameter) -> Any:
    """What is needed to dequantise a 4-bit weight; None for any other parameter.

    Read from bitsandbytes 0.50 (``Params4bit.quant_state``). Public instead: a documented attribute.
    """
    return parameter.__dict__.get("quant_state")
