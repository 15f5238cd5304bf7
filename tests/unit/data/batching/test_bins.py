"""Bins hold every row once, within their limits, and are few."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qlmm.data.batching.bins import bins


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 60), st.integers(1, 8), st.booleans())
def test_every_row_is_in_one_bin_within_the_limits(lengths: list[int], tokens: int, most: int, padded: bool) -> None:
    rows = range(len(lengths))
    found = bins(rows, lengths, tokens=tokens, most=most, padded=padded)
    assert sorted(row for one in found for row in one) == list(rows)
    for one in found:
        assert len(one) <= most
        taken = len(one) * max(lengths[row] for row in one) if padded else sum(lengths[row] for row in one)
        assert taken <= tokens or len(one) == 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_no_two_bins_could_be_one(lengths: list[int]) -> None:
    found = [sum(lengths[row] for row in one) for one in bins(range(len(lengths)), lengths, tokens=40, most=99)]
    assert all(one + other > 40 for place, one in enumerate(found) for other in found[place + 1 :])
    assert bins(range(len(lengths)), lengths, tokens=40, most=1) == [
        [row] for row in sorted(range(len(lengths)), key=lambda row: -lengths[row])
    ]
