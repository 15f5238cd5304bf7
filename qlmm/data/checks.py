"""Everything that can be said about rows before training on them: problems, counts, tokens, and what is learned.

Usage: ``report = check(sources, resolve=builtin_path); facts = token_counts(encoder, report.usable)``
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from qlmm.core.errors import Problem, Where
from qlmm.data.media.images import BadImage, decode
from qlmm.data.reading.dataset import Loaded, load_samples
from qlmm.data.reading.readers import Resolve
from qlmm.data.sample import Example, Feedback, ImageRef, Kind, Origin, Preference, Sample
from qlmm.recipe.schema import Source

if TYPE_CHECKING:
    from qlmm.data.encoding.encoder import Dropped, Encoder

__all__ = ["Piece", "Report", "Spread", "TokenCounts", "TracedPair", "check", "token_counts", "traced", "traced_pair"]


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


@dataclass(frozen=True, slots=True)
class Spread:
    """How a number varies over rows."""

    median: int
    p95: int
    max: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread:
        """Median, 95th percentile and maximum (nearest rank); zeros for no values."""
        ordered = sorted(values) or [0]
        return cls(*(ordered[max(0, math.ceil(len(ordered) * share) - 1)] for share in (0.5, 0.95, 1.0)))


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of the rows that fit.

    Attributes:
        total: tokens per row; of a pair, those of its longer side.
        supervised: learned tokens per row; of a pair, those of both answers.
        visual_share: visual tokens as a share of all.
        dropped: rows that do not fit.
        shortened: rows that lost old turns.
    """

    total: Spread
    supervised: Spread
    visual_share: float
    dropped: tuple[Dropped, ...]
    shortened: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a row as the model sees it: given, learned, or a picture's visual tokens."""

    kind: Literal["given", "learned", "picture"]
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class TracedPair:
    """The pieces of a preference: its prompt, and what follows it on each side."""

    prompt: list[Piece]
    chosen: list[Piece]
    rejected: list[Piece]


def check(
    sources: Sequence[Source],
    *,
    kind: Kind | None = None,
    objectives: Mapping[Kind, Sequence[str]] = MappingProxyType({}),
    resolve: Resolve = None,
    max_frames: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Read all rows and decode every picture once.

    Args:
        sources: what the recipe says.
        kind: what the rows must be; None takes what each source holds.
        objectives: names of the objectives that learn from each kind of row.
        resolve: gives the file or folder of a ``builtin:`` name.
        max_frames: most pictures that a video is shown as.
        progress: is told pictures done and pictures in all.

    Raises:
        DataError: when a source cannot be read at all, its format is unknown, or no row is left.
    """
    loaded = load_samples(
        sources, kind=kind, objectives=objectives, max_bad_rows=1.0, resolve=resolve, max_frames=max_frames
    )
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
            message = f"picture {ref.name}: {bad.reason}"
            problems.append(Problem("D020", message, Where(origin.file, origin.line), "replace or remove the picture"))
        progress(done, len(first_shown))
    twins = sum(count - 1 for count in Counter(sample.content for sample in loaded.samples).values())
    usable = tuple(sample for sample in loaded.samples if broken.isdisjoint(sample.images))
    return Report(loaded, tuple(problems), usable, len(first_shown), twins)


def token_counts(encoder: Encoder, samples: Sequence[Example]) -> TokenCounts:
    """Measure rows, as ``Report.usable`` has them.

    Raises:
        BadImage: when a picture's header cannot be read.
    """
    fitted = encoder.fit(samples)
    total = [lengths.total for lengths in fitted.lengths]
    visual = sum(lengths.visual for lengths in fitted.lengths)
    return TokenCounts(
        total=Spread.of(total),
        supervised=Spread.of([lengths.supervised for lengths in fitted.lengths]),
        visual_share=visual / max(1, sum(total)),
        dropped=fitted.dropped,
        shortened=fitted.shortened,
    )


def traced(encoder: Encoder, row: Sample | Feedback) -> list[Piece]:
    """A row as a training batch has it, from its tensors: text with what is learned, pictures as token counts."""
    from qlmm.data.encoding.encoder import IGNORED

    if isinstance(row, Feedback):
        judged = encoder.completions([row.sample])
        return _pieces(encoder, judged["input_ids"][0], judged["completion_mask"][0].bool(), row.images)
    batch = encoder.batch([row])
    return _pieces(encoder, batch["input_ids"][0], batch["labels"][0] != IGNORED, row.images)


def traced_pair(encoder: Encoder, pair: Preference) -> TracedPair:
    """A preference as a training batch has it, from its tensors; the prompt, the same on both sides, once."""
    batch = encoder.pairs([pair])
    sides = []
    for side in (0, 1):
        real = batch["attention_mask"][side].bool()
        sides.append((batch["input_ids"][side][real], batch["completion_mask"][side][real].bool()))
    starts = [int(answer.long().argmax()) for _, answer in sides]
    ids, learned = sides[0]
    prompt = _pieces(encoder, ids[: starts[0]], learned[: starts[0]], pair.images)
    chosen, rejected = (
        _pieces(encoder, ids[start:], answer[start:], ()) for start, (ids, answer) in zip(starts, sides, strict=True)
    )
    return TracedPair(prompt, chosen, rejected)


def _pieces(encoder: Encoder, ids: Any, learned: Any, shown: Sequence[ImageRef]) -> list[Piece]:
    """The pieces of one row, from its tokens and which of them are learned."""
    picture = encoder.slot_id
    tokens = [
        (token, "picture" if token == picture else "learned" if own else "given")
        for token, own in zip(ids.tolist(), learned.tolist(), strict=True)
    ]
    images = iter(shown)
    pieces: list[Piece] = []
    for kind, group in groupby(tokens, key=lambda one: one[1]):
        ids = [token for token, _ in group]
        if kind == "picture":
            pieces += _pictures(encoder, len(ids), images)
        else:
            text = encoder.processor.tokenizer.decode(ids)
            pieces.append(Piece("learned" if kind == "learned" else "given", text, len(ids)))
    return pieces


def _pictures(encoder: Encoder, slots: int, images: Iterator[ImageRef]) -> Iterator[Piece]:
    """Neighbouring pictures told apart by the tokens each takes."""
    while slots > 0:
        ref = next(images, None)
        taken = min(slots, encoder.slots([ref])) if ref is not None else slots
        yield Piece("picture", encoder.processor.image_token, taken)
        slots -= max(1, taken)
