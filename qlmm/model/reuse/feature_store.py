"""What frozen towers made of pictures, by the pictures' names, in host memory.

A name stands for all that the features follow from: the picture's encoded bytes and the processor's settings.

Usage: ``store = FeatureStore(); store.put(name, features); store.get(name)``
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

from qlmm.model.reuse.tensor_tree import mapped, size

__all__ = ["LIMIT_BYTES", "FeatureStore"]

# Towers that return all hidden states take 10 to 60 MB a picture.
LIMIT_BYTES = 2 * 2**30


class FeatureStore:
    """Features by name, up to a number of bytes and of names; those that were asked for longest ago go first."""

    def __init__(self, limit_bytes: float = LIMIT_BYTES, most: float = math.inf) -> None:
        self._limit, self._most, self._bytes = limit_bytes, most, 0
        self._made: OrderedDict[str, Any] = OrderedDict()

    def __len__(self) -> int:
        """How many pictures are known."""
        return len(self._made)

    def get(self, name: str) -> Any | None:
        """The features of that name as they lie in host memory, or None."""
        if name not in self._made:
            return None
        self._made.move_to_end(name)
        return self._made[name]

    def put(self, name: str, features: Any) -> None:
        """Keep features; a name that is known keeps what it has."""
        if name in self._made or size(features) > self._limit:
            return
        self._made[name] = mapped(features, lambda one: one.detach().cpu())
        self._bytes += size(features)
        while self._bytes > self._limit or len(self._made) > self._most:
            self._bytes -= size(self._made.popitem(last=False)[1])

    def clear(self) -> None:
        """Let everything go."""
        self._made.clear()
        self._bytes = 0
