"""Every problem of rows, found before training on them: rows that cannot be read, pictures that do not decode.

Usage: ``report = check(sources, resolve=builtin_path)``
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qlmm.core.errors import Problem, Where
from qlmm.data.media.images import BadImage, decode
from qlmm.data.reading.dataset import Loaded, load_samples
from qlmm.data.reading.readers import Resolve
from qlmm.data.sample import Example, ImageRef, Kind, Origin
from qlmm.recipe.schema import Source

__all__ = ["Report", "check"]


@dataclass(frozen=True, slots=True)
class Report:
    """What checking rows found.

    All pictures of ``usable`` rows decode; ``pictures`` counts different ones, and ``twins`` rows that repeat another.
    """

    loaded: Loaded[Example]
    problems: tuple[Problem, ...]
    usable: tuple[Example, ...]
    pictures: int
    twins: int


def check(
    sources: Sequence[Source],
    *,
    kind: Kind | None = None,
    resolve: Resolve = None,
    max_frames: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Read all rows as ``load_samples`` does and decode every picture once; ``progress`` gets pictures done and in all.

    Raises:
        DataError: when a source cannot be read at all, its format is unknown, or no row is left.
    """
    loaded = load_samples(sources, kind=kind, max_bad_rows=math.inf, resolve=resolve, max_frames=max_frames)
    first_shown: dict[ImageRef, Origin] = {}
    for sample in loaded.samples:
        for ref in sample.images:
            first_shown.setdefault(ref, sample.origin)
    problems = list(loaded.problems)
    broken = set()
    for done, (ref, origin) in enumerate(first_shown.items(), 1):
        try:
            decode(ref)
        except BadImage as bad:
            broken.add(ref)
            where = Where(origin.file, origin.line)
            problems.append(Problem("D020", bad.message, where, "replace or remove the picture"))
        progress(done, len(first_shown))
    twins = sum(count - 1 for count in Counter(sample.content for sample in loaded.samples).values())
    usable = tuple(sample for sample in loaded.samples if broken.isdisjoint(sample.images))
    return Report(loaded, tuple(problems), usable, len(first_shown), twins)
