"""Setting rows aside to measure on, such that no picture is on both sides, and what of a row was trained on.

Usage: ``learn, aside = set_aside(samples, 32, seed=0, same=originals(images))``
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from itertools import zip_longest
from typing import Literal

from qlmm.data.sample import Example, ImageRef, Turn

__all__ = ["Seen", "seen_in", "set_aside"]

# What of a held-out row was trained on.
Seen = Literal["nothing", "picture", "row"]
# Pictures of which only some rows are measured, where each has too many: all their rows are kept from training.
MOST_PARTED = 8


def set_aside(
    samples: Sequence[Example], wanted: int, *, seed: int, same: Mapping[ImageRef, ImageRef]
) -> tuple[list[int], list[int]]:
    """Row numbers to learn from and row numbers held out, both in order.

    Rows that share a picture, or a copy of it by `same`, stay together: a picture seen in training is not a test.
    Picture rows are preferred, since only they can show whether pictures are used. Where every picture has too many
    rows, some rows of a few pictures are held out; their other rows are on neither side.
    """
    # However few rows there are, most of them are for learning.
    most = min(wanted, int(len(samples) * 0.2))
    chance = random.Random(seed)  # noqa: S311 - a reproducible choice, no secret
    groups = _groups(samples, same)
    chance.shuffle(groups)
    groups.sort(key=lambda rows: not samples[rows[0]].images)
    taken: list[list[int]] = []
    for rows in groups:
        if sum(map(len, taken)) + len(rows) <= most:
            taken.append(rows)
    if most and not any(samples[rows[0]].images for rows in taken):
        pictured = [chance.sample(rows, len(rows)) for rows in groups if samples[rows[0]].images]
        taken = _to_part(pictured, len(samples)) or taken
    used = {row for rows in taken for row in rows}
    held = [row for turn in zip_longest(*taken) for row in turn if row is not None][:most]
    return [row for row in range(len(samples)) if row not in used], sorted(held)


def _to_part(groups: Sequence[list[int]], rows: int) -> list[list[int]]:
    """The smallest groups that may be kept from training: one up to half of all rows, several up to a fifth."""
    taken: list[list[int]] = []
    for group in sorted(groups, key=len)[:MOST_PARTED]:
        if sum(map(len, taken)) + len(group) <= rows * (0.2 if taken else 0.5):
            taken.append(group)
    return taken


def _groups(samples: Sequence[Example], same: Mapping[ImageRef, ImageRef]) -> list[list[int]]:
    """Rows that are connected by a shared picture, directly or through other rows; copies of a row without one."""
    leader = list(range(len(samples)))

    def find(row: int) -> int:
        while leader[row] != row:
            leader[row] = leader[leader[row]]
            row = leader[row]
        return row

    first: dict[Hashable, int] = {}
    for row, sample in enumerate(samples):
        shown: list[Hashable] = [same[image] for image in sample.images]
        for shared in shown or [sample.turns]:
            leader[find(row)] = find(first.setdefault(shared, row))
    groups: dict[int, list[int]] = {}
    for row in range(len(samples)):
        groups.setdefault(find(row), []).append(row)
    return list(groups.values())


def seen_in(trained: Sequence[Example], rows: Sequence[Example], same: Mapping[ImageRef, ImageRef]) -> list[Seen]:
    """What of each row was trained on: the whole row with its good answer, a picture of it, or nothing."""
    learned = {_turns(row, same) for row in trained}
    shown = {same[image] for row in trained for image in row.images}
    return [
        "row" if _turns(row, same) in learned
        else "picture" if any(same[image] in shown for image in row.images)
        else "nothing"
        for row in rows
    ]  # fmt: skip


def _turns(row: Example, same: Mapping[ImageRef, ImageRef]) -> tuple[Turn, ...]:
    """The conversation up to the answer that is learned, every picture replaced by the first of its copies."""
    return row.with_images(tuple(same[image] for image in row.images)).turns
