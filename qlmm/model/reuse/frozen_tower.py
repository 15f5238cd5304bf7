"""A frozen tower runs without gradients, and each picture passes it once, however many rows and epochs show it.

Each picture goes through the tower alone, so that its features have the same bits in every batch, and a continued run
has those of an uninterrupted one. Towers that lay all pictures end to end get whole batches. Of these the store keeps
the last few: enough for policy and reference of one step.

A hook of `nn.Module` can change what goes into a forward pass and what comes out, but it cannot skip the pass. So the
tower's `forward` is replaced on this one object, as accelerate does for its own hooks; `end` puts it back.

Usage: ``tower = FrozenTower.of(model, placement, store); with tower.showing(names): model(**batch)``
"""

from __future__ import annotations

import hashlib
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

# Of a tower that is shown whole batches, so many are kept: a further epoch makes other ones.
BATCHES = 2


class FrozenTower:
    """Stands before the forward pass of a tower that nothing changes.

    Attributes:
        seen: how often the tower itself was run.
        made: bytes of what it gave back, over all these runs.
    """

    def __init__(self, model: nn.Module, tower: nn.Module, store: FeatureStore | None) -> None:
        """Take the tower's place.

        Args:
            model: what is called for a pass, with the tower inside.
            tower: the tower.
            store: where features are kept; None keeps none, and only leaves gradients out.
        """
        self.seen = self.made = 0
        self._tower, self._store = tower, store
        self._forward: Callable[..., Any] = tower.forward
        self._names: Sequence[str] | None = None
        self._calls = 0
        self._batches: dict[str, Any] = {}
        # Whether pictures may be shown one by one is tried on the first batch that can tell.
        self._apart: bool | None = None
        # A class may call its tower twice in one pass, on other pixels of the same pictures.
        self._hook = model.register_forward_pre_hook(self._begin_pass)
        tower.forward = self

    @classmethod
    def of(cls, model: PeftModel, placement: Placement, store: FeatureStore | None) -> FrozenTower | None:
        """In the place of a model's tower, if nothing in it is trained or switched with the adapter; else None."""
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
        """While a batch's loss is computed: the names of its pictures, in order; None keeps nothing."""
        self._names = names
        try:
            yield
        finally:
            self._names = None

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the tower makes of its inputs."""
        given, self._calls = (args, kwargs), self._calls + 1
        if self._store is None or self._names is None:
            return self._run(given)
        if self._apart is None:
            self._apart = self._same_apart(given)
        if not self._apart:
            return self._whole(given)
        rows = [row(given, number) for number in range(count(given))]
        return joined([self._one(one, number, len(rows)) for number, one in enumerate(rows)])

    def _same_apart(self, given: Any) -> bool | None:
        """Whether pictures make the same features one by one: not where rows depend on each other or are laid out so.

        One picture alone, or the same one again and again, cannot tell.
        """
        rows = [row(given, number) for number in range(count(given))]
        if not rows or holds_lists(given, len(rows)):
            return False
        if len({_digest(one) for one in rows}) == 1:
            return None
        return same(self._run(given), [self._run(one) for one in rows])

    def _one(self, given: Any, number: int, rows: int) -> Any:
        """The features of one row: of a picture by its name, of a tile by its pixels."""
        names = self._names or ()
        name = names[number] if len(names) == rows else _digest(given)
        return self._kept(f"{self._calls} {name} {shape(given)}", given)

    def _kept(self, name: str, given: Any) -> Any:
        store, device = self._store, tensors(given)[0].device
        known = store.get(name) if store is not None else None
        if known is not None:
            return mapped(known, lambda one: one.to(device))
        made = self._run(given)
        if store is not None:
            store.put(name, made)
        return made

    def _whole(self, given: Any) -> Any:
        """The features of a whole batch, which are of use only while the same batch is shown again."""
        names, device = " ".join(self._names or ()) or _digest(given), tensors(given)[0].device
        name = f"{self._calls} {names} {shape(given)}"
        if name not in self._batches:
            made = self._run(given)
            self._batches[name] = mapped(made, lambda one: one.cpu())
            for old in list(self._batches)[:-BATCHES]:
                del self._batches[old]
            return made
        return mapped(self._batches[name], lambda one: one.to(device))

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
