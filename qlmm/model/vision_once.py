"""A frozen tower sees a picture once, however many rows and passes show it.

The two sides of a pair show the same pictures, and so do policy and reference. What a frozen tower made of them is
kept until other pictures come, and of two equal halves of a batch it is given one.

Usage: ``once = VisionOnce.of(base, placement); …; once.end()``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from qlmm.model.adapters import Placement

__all__ = ["VisionOnce"]


class VisionOnce:
    """Stands before a tower's forward pass.

    Attributes:
        passes: how often the tower was run.
    """

    def __init__(self, tower: nn.Module) -> None:
        self.passes = 0
        self._tower = tower
        self._forward: Callable[..., Any] = tower.forward
        self._seen: dict[str, Any] | None = None
        self._made: Any = None
        # Whether a doubled batch gives doubled features is tried on the first one that comes.
        self._halves: bool | None = None
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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the tower makes of its inputs, or what it made of the same ones just before."""
        given = {**{str(place): value for place, value in enumerate(args)}, **kwargs}
        if self._seen is None or not _same(given, self._seen):
            self._made = self._run(args, kwargs)
            self._seen = given
        return _copied(self._made)

    @torch.no_grad()
    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.passes += 1
        half = None if self._halves is False else _half((args, kwargs))
        if half is None:
            return self._forward(*args, **kwargs)
        made = _doubled(self._forward(*half[0], **half[1]))
        if self._halves is None:
            whole = self._forward(*args, **kwargs)
            self._halves = _close(made, whole)
            return whole
        return made

    def end(self) -> None:
        """Give the tower its own forward pass back, and let the features go."""
        self._tower.forward = self._forward
        self._seen = self._made = None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
        return one is other or (alike and torch.equal(one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_same(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other) if not isinstance(one, torch.Tensor) else False


def _half(value: Any) -> Any:
    """The first halves of all tensors, if they are the second ones too; else None."""
    tensors = _tensors(value)
    equal = all(one.dim() and len(one) % 2 == 0 and torch.equal(*one.chunk(2)) for one in tensors)
    return _mapped(value, lambda one: one[: len(one) // 2]) if tensors and equal else None


def _doubled(value: Any) -> Any:
    return _mapped(value, lambda one: torch.cat([one, one]))


def _copied(value: Any) -> Any:
    """The same tensors in new containers: models write into those."""
    return _mapped(value, lambda one: one)


def _close(one: Any, other: Any) -> bool:
    pairs = list(zip(_tensors(one), _tensors(other), strict=True))
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-2, atol=1e-3) for a, b in pairs)


def _tensors(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def note(one: torch.Tensor) -> torch.Tensor:
        found.append(one)
        return one

    _mapped(value, note)
    return found


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
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
