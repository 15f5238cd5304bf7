"""How long rows are: tokens per row, tokens that are learned, and the rows that do not fit.

Usage: ``facts = token_counts(encoder, report.usable)``
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qlmm.data.encoding.encoder import Encoder
from qlmm.data.encoding.length_limit import Dropped
from qlmm.data.sample import Example

__all__ = ["Spread", "TokenCounts", "token_counts"]


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
