"""Setting rows aside to measure on, such that no picture is on both sides.

Usage: ``learn, aside = set_aside(samples, 32, seed=0)``
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from qlmm.data.sample import Example, ImageRef

__all__ = ["set_aside"]


def set_aside(samples: Sequence[Example], wanted: int, *, seed: int) -> tuple[list[int], list[int]]:
    """Row numbers to learn from and row numbers held out, both in order.

    Rows that share a picture stay together: a picture seen in training is not a test. Picture rows are preferred,
    since only they can show whether pictures are used.
    """
    # However few rows there are, most of them are for learning.
    most = min(wanted, int(len(samples) * 0.2))
    groups = _groups(samples)
    random.Random(seed).shuffle(groups)  # noqa: S311 - a reproducible choice, no secret
    groups.sort(key=lambda rows: not samples[rows[0]].images)
    held: list[int] = []
    for rows in groups:
        if len(held) + len(rows) <= most:
            held += rows
    chosen = set(held)
    return [row for row in range(len(samples)) if row not in chosen], sorted(held)


def _groups(samples: Sequence[Example]) -> list[list[int]]:
    """Rows that are connected by a shared picture, directly or through other rows."""
    leader = list(range(len(samples)))

    def find(row: int) -> int:
        while leader[row] != row:
            leader[row] = leader[leader[row]]
            row = leader[row]
        return row

    first: dict[ImageRef, int] = {}
    for row, sample in enumerate(samples):
        for image in sample.images:
            leader[find(row)] = find(first.setdefault(image, row))
    groups: dict[int, list[int]] = {}
    for row in range(len(samples)):
        groups.setdefault(find(row), []).append(row)
    return list(groups.values())
