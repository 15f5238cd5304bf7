"""The published vectors of RLAIF-V's pairing (arXiv 2405.17220): scores, pairs, length filter."""

from __future__ import annotations

import pytest

from qlmm.preference_data.pairing import candidates, length_filter, score

VERDICTS = [
    [(0.9, 0.1), (0.8, 0.2)],
    [(0.6, 0.4), (0.3, 0.7)],
    [(0.5, 0.5), (0.9, 0.1)],
    [(0.1, 0.9), (0.2, 0.8), (0.9, 0.05)],
]
LENGTHS = [(10, 10), (4, 10), (12, 10), (9, 10), (6, 12), (20, 16)]


def test_scores_and_pairs_are_the_published_ones() -> None:
    scores = [score(verdicts) for verdicts in VERDICTS]
    assert scores == [0, -1, -1, -2]
    assert candidates("1234", scores) == [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]


def test_the_length_filter_is_the_published_one() -> None:
    filtered = length_filter(LENGTHS)
    assert filtered.ratio == 0.5
    assert filtered.kept == (0, 2, 3, 4, 5)
    assert filtered.imbalance == pytest.approx(0.0172414, abs=1e-7)
