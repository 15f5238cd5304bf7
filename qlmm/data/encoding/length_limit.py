"""Which rows fit within the most tokens a recipe allows, shortened where it says so, and why the others do not.

Usage: ``fitted = fit(samples, encoder.measure, max_length=2048, shorten=True)``
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, cast

from qlmm.data.sample import Example, Origin, Preference, Row, Side

__all__ = ["Dropped", "Fitted", "Lengths", "fit"]

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
class Dropped:
    """A row that does not fit, and why."""

    origin: Origin
    reason: str


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
            dropped.append(Dropped(sample.origin, _why_not(sample, lengths, measure, max_length)))
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


def _why_not(sample: Example, lengths: Lengths, measure: Measure, max_length: int) -> str:
    if not lengths.supervised:
        return "nothing to learn: no token of an answer is left"
    if isinstance(sample, Preference):
        sides = zip(SIDES, measure([sample.side(name) for name in SIDES]), strict=True)
        return "; ".join(f"{name} answer: {_over(side, max_length)}" for name, side in sides if side.total > max_length)
    return _over(lengths, max_length)


def _over(lengths: Lengths, max_length: int) -> str:
    return f"{lengths.visual:,} visual + {lengths.text:,} text tokens > {max_length:,}"
