"""A frozen tower sees a picture once, however many rows, passes and epochs show it.

The two sides of a pair show the same pictures, policy and reference see the same pairs, and a further epoch shows
everything again. What a frozen tower made of a picture is kept in host memory, up to a limit. Each picture goes
through the tower alone, so that its features have the same bits whatever else is in a batch, and a continued run those
of an uninterrupted one. Towers that lay all pictures end to end are shown whole batches, of which the last are kept:
enough for policy and reference of one step.

Usage: ``once = VisionOnce.of(base, placement); …; once.end()``
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from qlmm.model.peft.adapter import Placement

__all__ = ["VisionOnce"]

# Host memory for features. Towers that return all hidden states take 10 to 60 MB a picture.
KEPT_BYTES = 2 * 2**30
# Of a tower that is shown whole batches, as many are kept: a further epoch makes other ones.
BATCHES = 2


class VisionOnce:
    """Stands before a tower's forward pass.

    Attributes:
        seen: how often the tower was called.
    """

    def __init__(self, tower: nn.Module, *, kept_bytes: int = KEPT_BYTES) -> None:
        self.seen = 0
        self._tower, self._limit = tower, kept_bytes
        self._forward: Callable[..., Any] = tower.forward
        self._made: OrderedDict[str, Any] = OrderedDict()
        self._bytes = 0
        # Whether pictures may be shown one by one is tried on the first batch that comes.
        self._apart: bool | None = None
        tower.forward = self

    @classmethod
    def of(cls, base: PreTrainedModel, placement: Placement) -> VisionOnce | None:
        """Before the tower of a model, if nothing in it is trained or switched with the adapter; else None."""
        parts = placement.parts
        inside = any(name.startswith(f"{tower}.") for tower in parts.vision for name in (*parts.connector, *parts.bare))
        moving = any(parts.of(name) == "vision" for name in (*placement.lora, *placement.whole, *placement.carried))
        if len(parts.vision) != 1 or inside or moving or parts.discrete:
            return None
        return cls(base.get_submodule(parts.vision[0]))

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the tower makes of its inputs, each picture shown to it at most once."""
        given = (args, kwargs)
        if self._apart is None:
            self._apart = self._same_apart(given)
        if not self._apart:
            return self._kept("whole", given)
        return _joined([self._kept("one", _rows(given, row)) for row in range(_count(given))])

    def _same_apart(self, given: Any) -> bool | None:
        """Whether pictures make the same features one by one: not where rows depend on each other or are laid out so.

        One picture alone, or the same one again and again, cannot tell.
        """
        rows = [_rows(given, row) for row in range(_count(given))]
        if not rows or _lists(given, len(rows)):
            return False
        if len({_digest(row) for row in rows}) == 1:
            return None
        together, apart = _tensors(self._run(given)), [_tensors(self._run(row)) for row in rows]
        columns = list(zip(*apart, strict=True))
        stackable = all(len({one.shape[1:] for one in column}) == 1 and column[0].dim() for column in columns)
        return stackable and _close(together, [torch.cat(column) for column in columns])

    def _kept(self, kind: str, given: Any) -> Any:
        """What was made of these inputs before, or is made now."""
        key = f"{kind} {_digest(given)}"
        if key not in self._made:
            made = self._run(given)
            # Host memory is no saving on the CPU, where features lie there anyway.
            self._made[key] = _mapped(made, lambda one: one.cpu())
            self._bytes += _size(made)
            while (self._bytes > self._limit and len(self._made) > 1) or (
                kind == "whole" and len(self._made) > BATCHES
            ):
                self._bytes -= _size(self._made.popitem(last=False)[1])
            return made
        self._made.move_to_end(key)
        device = _tensors(given)[0].device
        return _mapped(self._made[key], lambda one: one.to(device))

    def _run(self, given: Any) -> Any:
        self.seen += 1
        args, kwargs = given
        return self._forward(*args, **kwargs)

    def end(self) -> None:
        """Give the tower its own forward pass back, and let the features go."""
        self._tower.forward = self._forward
        self._made.clear()


def _count(given: Any) -> int:
    """How many rows all tensors have; 0 where they have not the same number, or none."""
    counts = {len(one) if one.dim() else 0 for one in _tensors(given)}
    return counts.pop() if len(counts) == 1 else 0


def _rows(given: Any, row: int) -> Any:
    return _mapped(given, lambda one: one[row : row + 1])


def _lists(value: Any, count: int) -> bool:
    """Whether some plain list has one entry per picture, which cutting tensors would not cut."""
    if isinstance(value, Mapping):
        return any(_lists(one, count) for one in value.values())
    if isinstance(value, list | tuple):
        plain = len(value) == count > 1 and not any(isinstance(one, torch.Tensor | Mapping) for one in value)
        return plain or any(_lists(one, count) for one in value)
    return False


def _digest(given: Any) -> str:
    """Hash of all tensors, and of everything else that decides the result."""
    found = hashlib.sha256(repr(_mapped(given, lambda one: (one.dtype, tuple(one.shape)))).encode())
    for tensor in _tensors(given):
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(flat.numpy().data)
    return found.hexdigest()


def _joined(made: Sequence[Any]) -> Any:
    """Results of several calls as one, row after row."""
    columns = list(zip(*(_tensors(one) for one in made), strict=True))
    joined = iter([torch.cat(column) if column[0].dim() else column[0] for column in columns])
    return _mapped(made[0], lambda one: next(joined))


def _close(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-2, atol=1e-3) for a, b in pairs)


def _size(value: Any) -> int:
    return sum(one.numel() * one.element_size() for one in _tensors(value))


def _tensors(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def note(one: torch.Tensor) -> torch.Tensor:
        found.append(one)
        return one

    _mapped(value, note)
    return found


def _mapped(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """A structure of tensors with each of them changed; an object that models return keeps its class."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _mapped(one, change) for name, one in value.items()})
    if isinstance(value, Mapping):
        return {name: _mapped(one, change) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(one, change) for one in value)
    return value
