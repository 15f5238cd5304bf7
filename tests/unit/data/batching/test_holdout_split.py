"""Rows set aside share no picture with the rows that are learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from qlmm.data.batching import holdout_split
from qlmm.data.batching.holdout_split import seen_in
from qlmm.data.media.copies import originals
from qlmm.data.sample import Example, Feedback, ImageRef, Origin, Preference, Sample, Turn

ORIGIN = Origin("rows.jsonl", 1)


def _sample(pictures: Sequence[int], question: str = "q", answer: str = "a") -> Sample:
    images = tuple(ImageRef(path=Path(f"{picture}.png")) for picture in pictures)
    return Sample((Turn("user", (*images, question)), Turn("assistant", (answer,))), ORIGIN)


def set_aside(samples: Sequence[Example], wanted: int, seed: int = 0) -> tuple[list[int], list[int]]:
    same = originals(image for row in samples for image in row.images)
    return holdout_split.set_aside(samples, wanted, seed=seed, same=same)


def _shown(samples: Sequence[Example], rows: Sequence[int]) -> set[ImageRef]:
    return {image for row in rows for image in samples[row].images}


@given(
    st.lists(st.lists(st.integers(0, 12), max_size=3), min_size=1, max_size=40), st.integers(1, 20), st.integers(0, 5)
)
def test_no_picture_is_on_both_sides(rows: list[list[int]], wanted: int, seed: int) -> None:
    samples = [_sample(pictures, f"q{number}") for number, pictures in enumerate(rows)]
    learn, aside = set_aside(samples, wanted, seed)
    assert not set(learn) & set(aside)
    assert len(aside) <= wanted
    assert len(learn) >= len(samples) / 2
    assert len(learn) >= len(aside)
    assert not _shown(samples, learn) & _shown(samples, aside)
    # What is on neither side shares a picture with what is measured.
    neither = [row for row in range(len(samples)) if row not in {*learn, *aside}]
    assert not _shown(samples, neither) & _shown(samples, learn)
    assert set_aside(samples, wanted, seed) == (learn, aside)


def test_picture_rows_come_first() -> None:
    samples = [_sample([number] if number % 2 else [], f"q{number}") for number in range(40)]
    _, aside = set_aside(samples, 5)
    assert len(aside) == 5
    assert all(samples[row].images for row in aside)


def test_where_every_picture_has_too_many_rows_some_of_a_few_pictures_are_held_out() -> None:
    samples = [_sample([picture], f"q{row}") for picture in range(400) for row in range(100)]
    learn, aside = set_aside(samples, 64)
    assert len(aside) == 64
    assert len(_shown(samples, aside)) == 8
    assert len(learn) == 39_200


def test_text_rows_do_not_hide_that_no_picture_row_was_held_out() -> None:
    samples = [*(_sample([row % 4], f"q{row}") for row in range(400)), *(_sample([], f"t{row}") for row in range(40))]
    _, aside = set_aside(samples, 64)
    assert len(aside) == 64
    assert len(_shown(samples, aside)) == 1


def test_one_picture_for_all_rows_leaves_none_to_hold_out() -> None:
    samples = [_sample([0], f"q{row}") for row in range(100)]
    assert set_aside(samples, 8) == (list(range(100)), [])


def test_copies_of_a_picture_stay_on_one_side(tmp_path: Path) -> None:
    samples = []
    for number in range(40):
        path = tmp_path / f"{number}.png"
        path.write_bytes(bytes([number % 20]) * 9)
        samples.append(Sample((Turn("user", (ImageRef(path=path), "q")), Turn("assistant", ("a",))), ORIGIN))
    learn, aside = set_aside(samples, 8)
    assert len(aside) == 8
    assert not {row % 20 for row in learn} & {row % 20 for row in aside}


def test_copies_of_a_row_without_a_picture_stay_on_one_side() -> None:
    samples = [_sample([], f"q{number % 20}") for number in range(40)]
    learn, aside = set_aside(samples, 8)
    assert len(aside) == 8
    assert not {row % 20 for row in learn} & {row % 20 for row in aside}


def test_what_was_trained_on_is_known_by_its_content() -> None:
    rows = [_sample([1], "q", "a"), _sample([1], "q", "b"), _sample([2], "q", "a"), _sample([], "q", "a")]
    same = originals(image for row in rows for image in row.images)
    assert seen_in([_sample([1], "q", "a")], rows, same) == ["row", "picture", "nothing", "nothing"]


def test_rows_are_compared_across_kinds_by_question_and_good_answer() -> None:
    prompt = (Turn("user", ("q",)),)
    pair, judged = Preference(prompt, "a", "b", ORIGIN), Feedback(prompt, "a", True, ORIGIN)
    other = Preference(prompt, "c", "a", ORIGIN)
    assert seen_in([_sample([], "q", "a")], [pair, judged, other], {}) == ["row", "row", "nothing"]
