"""Which rows fit within the most tokens a recipe allows, shortened where it allows that, and why the others do not.

Usage: ``fitted = fit(samples, encoder.measure, max_length=2048, shorten=True)``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, cast

from qlmm.data.errors import DropReason
from qlmm.data.sample import Example, Origin, Preference, Row, Side

__all__ = ["Dropped", "Fitted", "Lengths", "Spread", "fit"]

SIDES: tuple[Side, Side] = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of one row, visual ones and others; of a pair, those of its longer side.

    ``supervised`` ones have a loss. They are part of ``text``, but of a pair, those of both answers.
    """

    text: int
    visual: int
    supervised: int

    @property
    def total(self) -> int:
        """Tokens the model sees."""
        return self.text + self.visual

    def excess(self, most: int) -> str:
        """Why a row does not fit."""
        return f"{self.visual:,} visual + {self.text:,} text tokens > {most:,}"


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
class Dropped:
    """A row that does not fit; ``reason`` is for counting, ``text`` has the row's own numbers."""

    origin: Origin
    reason: DropReason
    text: str


@dataclass(frozen=True, slots=True)
class Fitted(Generic[Row]):
    """Rows that fit, shortened where the recipe allows it.

    ``kept`` is per sample its place among the rows given; ``shortened`` counts samples that lost old turns.
    """

    samples: tuple[Row, ...]
    kept: tuple[int, ...]
    lengths: tuple[Lengths, ...]
    dropped: tuple[Dropped, ...]
    shortened: int


Measure = Callable[[Sequence[Example]], list[Lengths]]


def fit(samples: Sequence[Row], measure: Measure, *, max_length: int, shorten: bool) -> Fitted[Row]:
    """The rows that can be learned from within ``max_length`` tokens, visual ones included.

    ``shorten`` leaves out the oldest exchanges of longer rows, one by one, until they fit.
    """
    fitted: list[tuple[int, Row, Lengths]] = []
    dropped: list[Dropped] = []
    for place, (sample, lengths) in enumerate(zip(samples, measure(samples), strict=True)):
        for candidate, tokens in _candidates(sample, lengths, measure, shorten):
            if tokens.total <= max_length and tokens.supervised:
                fitted.append((place, candidate, tokens))
                break
        else:
            dropped.append(_dropped(sample, lengths, measure, max_length))
    return Fitted(
        samples=tuple(sample for _, sample, _ in fitted),
        kept=tuple(place for place, _, _ in fitted),
        lengths=tuple(lengths for _, _, lengths in fitted),
        dropped=tuple(dropped),
        shortened=sum(samples[place] is not sample for place, sample, _ in fitted),
    )


def _candidates(sample: Row, lengths: Lengths, measure: Measure, shorten: bool) -> Iterator[tuple[Row, Lengths]]:
    """The row, and, where allowed, ever shorter forms of it."""
    yield sample, lengths
    shorter = sample
    while shorten and (without := shorter.without_oldest()) is not None:
        # mypy cannot tell that each kind of row gives its own kind.
        shorter = cast("Row", without)
        yield shorter, measure([shorter])[0]


def _dropped(sample: Example, lengths: Lengths, measure: Measure, most: int) -> Dropped:
    if not lengths.supervised:
        return Dropped(sample.origin, DropReason.NOTHING_LEARNED, "nothing to learn: no token of an answer is left")
    excess = lengths.excess(most)
    if isinstance(sample, Preference):
        sides = zip(SIDES, measure([sample.side(name) for name in SIDES]), strict=True)
        excess = "; ".join(f"{name} answer: {side.excess(most)}" for name, side in sides if side.total > most)
    return Dropped(sample.origin, DropReason.TOO_LONG, excess)
