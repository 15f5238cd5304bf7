"""Structures of tensors, as models take and return them: lists, mappings and output objects, nested.

Usage: ``mapped(output, lambda one: one.cpu())``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers.utils import ModelOutput

__all__ = ["Arguments", "count", "holds_lists", "joined", "mapped", "row", "same", "shape", "size", "tensors"]

# What a module is called with by name, as its hooks are given it.
Arguments = dict[str, Any]


def mapped(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """A structure with each tensor changed; an object that models return keeps its class."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, ModelOutput):
        return type(value)(**{name: mapped(one, change) for name, one in value.items()})
    if isinstance(value, Mapping):
        return {name: mapped(one, change) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(one, change) for one in value)
    return value


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors of a structure, in order."""
    found: list[torch.Tensor] = []

    def note(one: torch.Tensor) -> torch.Tensor:
        found.append(one)
        return one

    mapped(value, note)
    return found


def size(value: Any) -> int:
    """Bytes of all tensors."""
    return sum(one.numel() * one.element_size() for one in tensors(value))


def count(value: Any) -> int:
    """How many rows all tensors have; 0 where they have not the same number, or none."""
    counts = {len(one) if one.dim() else 0 for one in tensors(value)}
    return counts.pop() if len(counts) == 1 else 0


def row(value: Any, number: int) -> Any:
    """The structure with one row of each tensor."""
    return mapped(value, lambda one: one[number : number + 1])


def holds_lists(value: Any, length: int) -> bool:
    """Whether some plain list has one entry per row, which cutting tensors would not cut."""
    if isinstance(value, Mapping):
        return any(holds_lists(one, length) for one in value.values())
    if isinstance(value, list | tuple):
        plain = len(value) == length > 1 and not any(isinstance(one, torch.Tensor | Mapping) for one in value)
        return plain or any(holds_lists(one, length) for one in value)
    return False


def joined(made: Sequence[Any]) -> Any:
    """Several structures as one, row after row; single numbers are those of the first."""
    columns = list(zip(*(tensors(one) for one in made), strict=True))
    whole = iter([torch.cat(column) if column[0].dim() else column[0] for column in columns])
    return mapped(made[0], lambda one: next(whole))


def same(together: Any, apart: Sequence[Any]) -> bool:
    """Whether structures of single rows, joined, are close to the structure of all rows."""
    columns = list(zip(*(tensors(one) for one in apart), strict=True))
    if not all(len({one.shape[1:] for one in column}) == 1 and column[0].dim() for column in columns):
        return False
    pairs = zip(tensors(together), [torch.cat(column) for column in columns], strict=True)
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-2, atol=1e-3) for a, b in pairs)


def shape(value: Any) -> str:
    """A structure in words: kind and size of each tensor, and everything else as it is."""
    return repr(mapped(value, lambda one: (one.dtype, tuple(one.shape))))
