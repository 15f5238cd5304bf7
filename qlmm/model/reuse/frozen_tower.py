"""A frozen tower runs without gradients, and each picture passes it once, however many rows and epochs show it.

Each picture goes through the tower alone, so that its features have the same bits in every batch, and a continued run
has those of an uninterrupted one. Towers that lay all pictures end to end get whole batches, of which the last few are
kept: enough for policy and reference of one step.

A hook of `nn.Module` cannot skip a forward pass. So the tower's `forward` is replaced on this one object, as accelerate
does for its own hooks; `end` puts it back.

Usage: ``tower = FrozenTower.of(model, placement, store); with tower.showing(names): model(**batch)``
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from qlmm.model.peft.adapter import Placement
from qlmm.model.reuse.feature_store import FeatureStore
from qlmm.model.reuse.tensor_tree import count, holds_lists, joined, mapped, row, same, shape, size, tensors

__all__ = ["FrozenTower"]

# How many are kept of a tower that is shown whole batches: a further epoch makes other ones.
BATCHES = 2


class FrozenTower:
    """Replaces the forward pass of a tower that nothing changes; without a store it only leaves gradients out.

    Attributes:
        seen: how often the tower itself was run.
        made: bytes of its outputs, over all these runs.
    """

    def __init__(self, model: nn.Module, tower: nn.Module, store: FeatureStore | None) -> None:
        self.seen = self.made = 0
        self._tower, self._store = tower, store
        self._forward: Callable[..., Any] = tower.forward
        self._names: Sequence[str] | None = None
        self._calls = 0
        self._batches = FeatureStore(math.inf, most=BATCHES)
        # Whether pictures may be shown one by one is tried on the first batch that can show it.
        self._apart: bool | None = None
        # A class may call its tower twice in one pass of the model, on other pixels of the same pictures.
        self._hook = model.register_forward_pre_hook(self._begin_pass)
        tower.forward = self

    @classmethod
    def of(cls, model: PeftModel, placement: Placement, store: FeatureStore | None) -> FrozenTower | None:
        """Replaces a model's tower, if nothing in it is trained or switched with the adapter; else None."""
        parts = placement.parts
        inside = any(name.startswith(f"{tower}.") for tower in parts.vision for name in (*parts.connector, *parts.bare))
        moving = any(parts.of(name) == "vision" for name in (*placement.lora, *placement.whole, *placement.carried))
        if len(parts.vision) != 1 or inside or moving or parts.discrete:
            return None
        return cls(model, model.get_base_model().get_submodule(parts.vision[0]), store)

    @property
    def stores(self) -> bool:
        """Whether features are kept."""
        return self._store is not None

    def keep_none(self) -> None:
        """From now on only leave gradients out."""
        self._store = None

    @contextmanager
    def showing(self, names: Sequence[str] | None) -> Iterator[None]:
        """Names the pictures of a batch, in order, while its loss is computed; None keeps nothing."""
        self._names = names
        try:
            yield
        finally:
            self._names = None

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the tower makes of its inputs."""
        given, self._calls = (args, kwargs), self._calls + 1
        store, names = self._store, self._names
        if store is None or names is None:
            return self._run(given)
        if self._apart is None:
            self._apart = self._same_apart(given)
        if not self._apart:
            return self._kept(" ".join(names) or _digest(given), given, self._batches)
        rows = [row(given, number) for number in range(count(given))]
        if len(names) != len(rows):  # tiles, which go by their pixels
            names = [_digest(one) for one in rows]
        return joined([self._kept(name, one, store) for name, one in zip(names, rows, strict=True)])

    def _same_apart(self, given: Any) -> bool | None:
        """Whether pictures make the same features one by one; None where one picture alone cannot show it."""
        rows = [row(given, number) for number in range(count(given))]
        if not rows or holds_lists(given, len(rows)):
            return False
        if len({_digest(one) for one in rows}) == 1:
            return None
        return same(self._run(given), [self._run(one) for one in rows])

    def _kept(self, name: str, given: Any, store: FeatureStore) -> Any:
        name = f"{self._calls} {name} {shape(given)}"
        known, device = store.get(name), tensors(given)[0].device
        if known is not None:
            return mapped(known, lambda one: one.to(device))
        made = self._run(given)
        store.put(name, made)
        return made

    def _run(self, given: Any) -> Any:
        args, kwargs = given
        made = self._forward(*args, **kwargs)
        self.seen, self.made = self.seen + 1, self.made + size(made)
        return made

    def _begin_pass(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        self._calls = 0

    def end(self) -> None:
        """Give the tower its own forward pass back, and let the features go."""
        self._tower.forward = self._forward
        self._hook.remove()
        self._batches.clear()
        if self._store is not None:
            self._store.clear()


def _digest(given: Any) -> str:
    """Hash of all tensors of a row."""
    found = hashlib.sha256()
    for tensor in tensors(given):
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(flat.numpy().data)
    return found.hexdigest()
