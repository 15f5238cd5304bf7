"""A row that remembers which of its keys were read, so that no key that carries meaning is dropped without a word.

Usage: ``row = Tracked(row); turns = FORMAT.read(row, images); list(row.unread())``
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

__all__ = ["Tracked"]


class Tracked(Mapping[str, object]):
    """A row, a turn or a part. Lists of turns or parts are read as lists of `Tracked`, whole conversations too."""

    __slots__ = ("_given", "_read")

    def __init__(self, given: Mapping[str, object]) -> None:
        self._given = given
        self._read: dict[str, object] = {}

    def __getitem__(self, key: str) -> object:
        if key not in self._read:
            self._read[key] = _tracked(self._given[key])
        return self._read[key]

    def get(self, key: str, default: object = None) -> object:
        """The value of a key; without the exception that a `Mapping` raises and catches for a missing one."""
        return self[key] if key in self._given else default

    def __contains__(self, key: object) -> bool:
        return key in self._given

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def __eq__(self, other: object) -> bool:
        """Whether both say the same; what is read of one is then read of the other."""
        if not isinstance(other, Tracked):
            return self._given == other
        if self._given != other._given:
            return False
        self._read |= other._read
        other._read = self._read
        return True

    __hash__ = None  # type: ignore[assignment]  # what can change has no hash

    def unread(self) -> Iterator[str]:
        """Keys with a value that were not read: ``id``, ``messages[].name`` or ``chosen.weight``."""
        for key, value in self._given.items():
            if key not in self._read:
                if not _empty(value):
                    yield key
            elif isinstance(read := self._read[key], Tracked):
                yield from (f"{key}.{inner}" for inner in read.unread())
            elif isinstance(read, list):
                yield from (f"{key}[].{inner}" for one in read if isinstance(one, Tracked) for inner in one.unread())


def _empty(value: object) -> bool:
    """Whether a value is empty, such as those of columnar files where a row lacks a key."""
    if isinstance(value, (str, bytes, list, tuple, Mapping)):
        return not value
    return value is None or (isinstance(value, float) and math.isnan(value))


def _tracked(value: object) -> object:
    if isinstance(value, Mapping):
        return Tracked(value)
    if isinstance(value, (list, tuple)) and any(isinstance(one, Mapping) for one in value):
        return [_tracked(one) for one in value]
    return value


def named(value: object) -> str:
    """The type of a value, as messages name it."""
    return "an object" if isinstance(value, Mapping) else type(value).__name__
