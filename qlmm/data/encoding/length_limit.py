"""Which rows fit within the most tokens a recipe allows, shortened where it says so, and why the others do not.

Usage: ``fitted = fit(samples, encoder.measure, max_length=2048, shorten=True)``
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, cast

from qlmm.data.errors import DropReason
from qlmm.data.sample import Example, Origin, Preference, Row, Side

__all__ = ["Dropped", "Excess", "Fitted", "Lengths", "fit"]

SIDES: tuple[Side, Side] = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of one row; of a pair, those of its longer side.

    Attributes:
        text: everything that is not a visual token.
        visual: placeholders of its pictures.
        supervised: tokens that carry loss; part of ``text``, but for a pair, where those of both answers are counted.
    """

    text: int
    visual: int
    supervised: int

    @property
    def total(self) -> int:
        """Tokens the model sees."""
        return self.text + self.visual


@dataclass(frozen=True, slots=True)
class Excess:
    """An answer that is too long together with its prompt; of a pair, which of the two."""

    lengths: Lengths
    most: int
    side: Side | None = None

    def __str__(self) -> str:
        side = f"{self.side} answer: " if self.side else ""
        return f"{side}{self.lengths.visual:,} visual + {self.lengths.text:,} text tokens > {self.most:,}"


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that does not fit, and why.

    Attributes:
        origin: where the row came from.
        reason: the class of reason, which is counted.
        excess: what is too long.
    """

    origin: Origin
    reason: DropReason
    excess: tuple[Excess, ...] = ()

    @property
    def text(self) -> str:
        """The reason in words, with the row's own numbers."""
        return "; ".join(map(str, self.excess)) or "nothing to learn: no token of an answer is left"


@dataclass(frozen=True, slots=True)
class Fitted(Generic[Row]):
    """Rows that fit, shortened where the recipe allows it.

    Attributes:
        samples: rows to train on.
        kept: per sample, its place among the rows given.
        lengths: per sample, its tokens.
        dropped: the others, with reasons.
        shortened: how many samples lost old turns.
    """

    samples: tuple[Row, ...]
    kept: tuple[int, ...]
    lengths: tuple[Lengths, ...]
    dropped: tuple[Dropped, ...]
    shortened: int


Measure = Callable[[Sequence[Example]], list[Lengths]]


def fit(samples: Sequence[Row], measure: Measure, *, max_length: int, shorten: bool) -> Fitted[Row]:
    """The rows that can be learned from within ``max_length``.

    Args:
        samples: all rows.
        measure: tokens per row.
        max_length: most tokens of a row, visual ones included.
        shorten: leave out the oldest exchanges of longer rows, one by one, until they fit.
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
        # Each kind of row gives its own kind, which a union of methods does not tell.
        shorter = cast("Row", without)
        yield shorter, measure([shorter])[0]


def _dropped(sample: Example, lengths: Lengths, measure: Measure, most: int) -> Dropped:
    if not lengths.supervised:
        return Dropped(sample.origin, DropReason.NOTHING_LEARNED)
    if not isinstance(sample, Preference):
        return Dropped(sample.origin, DropReason.TOO_LONG, (Excess(lengths, most),))
    sides = zip(SIDES, measure([sample.side(name) for name in SIDES]), strict=True)
    return Dropped(
        sample.origin,
        DropReason.TOO_LONG,
        tuple(Excess(side, most, name) for name, side in sides if side.total > most),
    )
