"""Deterministic weights and inputs for golden vectors: sines and cosines of the index, in float64.

The vectors were made with the original implementations filled by the same rule, so a match means equal arithmetic,
not equal luck.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def sine(count: int, k: int) -> Tensor:
    """Values of the k-th parameter (in ASCII order of names): ``0.25 sin(0.9 i + 0.4 k + 0.1)``."""
    return 0.25 * torch.sin(0.9 * torch.arange(count, dtype=torch.float64) + 0.4 * k + 0.1)


def fill(shapes: dict[str, tuple[int, ...]], norms: Iterable[str]) -> dict[str, Tensor]:
    """A state dictionary: parameter k of the sorted names is ``sine(k)``, plus one for LayerNorm weights."""
    one_more = set(norms)
    return {
        name: sine(math.prod(shape), k).reshape(shape) + (1.0 if name in one_more else 0.0)
        for k, (name, shape) in enumerate(sorted(shapes.items()))
    }


def norm_weights(module: nn.Module) -> list[str]:
    """Names of the LayerNorm weights of a module."""
    return [f"{name}.weight" for name, child in module.named_modules() if isinstance(child, nn.LayerNorm)]


def wave(*shape: int) -> Tensor:
    """The image input: ``cos(0.37 i)``."""
    return torch.cos(0.37 * torch.arange(math.prod(shape), dtype=torch.float64)).reshape(shape)


def query_wave(*shape: int) -> Tensor:
    """The query input: ``0.5 sin(0.53 i + 0.2)``."""
    return 0.5 * torch.sin(0.53 * torch.arange(math.prod(shape), dtype=torch.float64) + 0.2).reshape(shape)
