"""Every problem of rows, found before training on them: rows that cannot be read, pictures that do not decode.

Usage: ``report = check(sources, resolve=builtin_path)``
"""

from __future__ import annotations

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

    Attributes:
        loaded: the rows, and those that could not be taken.
        problems: all of them: unreadable rows, missing pictures, pictures that do not decode.
        usable: rows all of whose pictures decode.
        pictures: different pictures, decoded or not.
        twins: rows that repeat an earlier one, text and pictures alike.
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
    """Read all rows and decode every picture once.

    Args:
        sources: what the recipe says.
        kind: what the rows must be; None takes whatever each source holds.
        resolve: gives the file or folder of a ``builtin:`` name.
        max_frames: most pictures that a video is shown as.
        progress: is told pictures done and pictures in all.

    Raises:
        DataError: when a source cannot be read at all, its format is unknown, or no row is left.
    """
    loaded = load_samples(sources, kind=kind, max_bad_rows=1.0, resolve=resolve, max_frames=max_frames)
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
            problems.append(
                Problem("D020", bad.message, Where(origin.file, origin.line), "replace or remove the picture")
            )
        progress(done, len(first_shown))
    twins = sum(count - 1 for count in Counter(sample.content for sample in loaded.samples).values())
    usable = tuple(sample for sample in loaded.samples if broken.isdisjoint(sample.images))
    return Report(loaded, tuple(problems), usable, len(first_shown), twins)
