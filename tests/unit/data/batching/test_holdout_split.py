"""Rows set aside share no picture with the rows that are learned."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from qlmm.data.batching.holdout_split import set_aside
from qlmm.data.sample import ImageRef, Origin, Sample, Turn


def _sample(number: int, pictures: list[int]) -> Sample:
    images = tuple(ImageRef(path=Path(f"{picture}.png")) for picture in pictures)
    return Sample((Turn("user", (*images, "q")), Turn("assistant", ("a",))), Origin("rows.jsonl", number + 1))


@given(
    st.lists(st.lists(st.integers(0, 12), max_size=3), min_size=1, max_size=40), st.integers(1, 20), st.integers(0, 5)
)
def test_no_picture_is_on_both_sides(rows: list[list[int]], wanted: int, seed: int) -> None:
    samples = [_sample(number, pictures) for number, pictures in enumerate(rows)]
    learn, aside = set_aside(samples, wanted, seed=seed)
    assert sorted([*learn, *aside]) == list(range(len(samples)))
    assert len(aside) <= wanted
    assert len(learn) >= len(aside)
    seen = {image for row in learn for image in samples[row].images}
    assert not seen & {image for row in aside for image in samples[row].images}
    assert set_aside(samples, wanted, seed=seed) == (learn, aside)


def test_picture_rows_come_first() -> None:
    samples = [_sample(number, [number] if number % 2 else []) for number in range(40)]
    _, aside = set_aside(samples, 5, seed=0)
    assert len(aside) == 5
    assert all(samples[row].images for row in aside)
