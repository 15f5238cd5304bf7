"""Tokens are counted over rows, and rows that do not fit are named."""

from __future__ import annotations

import pytest

from qlmm.data.encoding.encoder import Encoder
from qlmm.data.encoding.length_limit import Spread
from qlmm.data.sample import Origin, Sample, Turn
from tests.tiny import tiny_processor

ROW = Sample((Turn("user", ("What?",)), Turn("assistant", ("A cat.",))), Origin("x", 1))


@pytest.mark.parametrize(
    ("values", "spread"),
    [([], (0, 0, 0)), ([7], (7, 7, 7)), (list(range(1, 101)), (50, 95, 100)), ([3, 1, 2], (2, 3, 3))],
)
def test_spread_is_by_nearest_rank(values: list[int], spread: tuple[int, int, int]) -> None:
    assert Spread.of(values) == Spread(*spread)


def test_rows_that_do_not_fit_are_named() -> None:
    assert Encoder.make(tiny_processor("owl"), max_length=5).fit([ROW]).dropped[0].origin == ROW.origin
