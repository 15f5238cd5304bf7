"""A run that kept every promise may still have made the model worse, and the second verdict says so."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from qlmm.proof.records import Answer, HeldOutProof, PairProof, PictureProof, Promise, Proof
from qlmm.proof.verdicts import commonest_answer, compare, verdicts

PICTURES = PictureProof(rows=4, right=1.0, shuffled=1.5, none=2.0)
PAIRS = PairProof(rows=4, won=0.5, margin=1.0, swapped_rows=4, won_swapped=0.25, margin_swapped=0.5, kl=None)
RIGHT, WRONG = Answer(b"", "q", "Yes", "", "yes."), Answer(b"", "q", "no", "", "yes")


def _results(before: HeldOutProof, after: HeldOutProof) -> list[tuple[str, str]]:
    return [(one.against, one.result) for one in compare(before, after, (), None)]


@pytest.mark.parametrize(
    ("right", "before", "blind"),
    [(0.5, "better", "better"), (1.0, "same", "better"), (1.2, "worse", "better"), (1.5, "worse", "same"),
     (9.0, "worse", "worse"), (math.nan, "worse", "worse"), (math.inf, "worse", "worse")],
)  # fmt: skip
def test_a_run_on_answers_is_judged_by_its_loss(right: float, before: str, blind: str) -> None:
    after = HeldOutProof(replace(PICTURES, right=right), None)
    expected = [("before training", before), ("without the picture", blind)]
    assert _results(HeldOutProof(PICTURES, None), after) == expected


def test_a_lower_loss_without_any_picture_is_not_seeing() -> None:
    after = HeldOutProof(PictureProof(4, right=0.5, shuffled=0.9, none=0.4), None)
    assert _results(HeldOutProof(None, None), after) == [("without the picture", "worse")]


@pytest.mark.parametrize(
    ("won", "margin", "before", "blind"),
    [(0.75, 0.0, "better", "better"), (0.5, 2.0, "better", "better"), (0.5, 1.0, "same", "better"),
     (0.25, 9.0, "worse", "better"), (0.25, 0.5, "worse", "same"), (0.25, 0.1, "worse", "worse")],
)  # fmt: skip
def test_a_run_on_pairs_is_judged_by_pairs_won_and_then_by_the_margin(
    won: float, margin: float, before: str, blind: str
) -> None:
    # A lower loss of the chosen answers does not count.
    after = HeldOutProof(replace(PICTURES, right=0.1), replace(PAIRS, won=won, margin=margin))
    expected = [("before training", before), ("without the picture", blind)]
    assert _results(HeldOutProof(PICTURES, PAIRS), after) == expected


@pytest.mark.parametrize("answers", [[RIGHT, RIGHT], [RIGHT, WRONG]])
def test_always_yes_is_not_better_than_the_commonest_answer(answers: list[Answer]) -> None:
    (found,) = compare(HeldOutProof(None, None), HeldOutProof(None, None), answers, "yes")
    assert (found.against, found.result) == ("the commonest answer", "same")


def test_where_neither_is_ever_right_the_commonest_answer_decides_nothing() -> None:
    assert not compare(HeldOutProof(None, None), HeldOutProof(None, None), [WRONG], "yes")


def test_more_right_answers_than_the_commonest_one_are_better_and_fewer_are_worse() -> None:
    told = replace(WRONG, after="No")
    (found,) = compare(HeldOutProof(None, None), HeldOutProof(None, None), [RIGHT, told], "yes")
    assert found.result == "better"
    assert found.detail == "2 of 2 answers right word for word; the commonest one alone gets 1"
    (found,) = compare(HeldOutProof(None, None), HeldOutProof(None, None), [replace(RIGHT, after="no")], "yes")
    assert found.result == "worse"


def test_an_answer_that_is_rare_is_not_a_guess() -> None:
    assert commonest_answer(["Yes.", "yes", "no"]) == "yes"
    assert commonest_answer([str(number) for number in range(5)]) is None
    assert commonest_answer([*(str(number) for number in range(30)), "a", "a"]) is None
    assert commonest_answer([]) is None


def test_the_two_verdicts_are_apart() -> None:
    kept = (Promise("it moved", True, ""),)
    lost = compare(HeldOutProof(None, PAIRS), HeldOutProof(None, replace(PAIRS, won=0.25)), (), None)
    proof = Proof((), None, None, 0, None, promises=kept, comparisons=lost)
    found = verdicts(proof)
    assert (found.sound, found.useful, found.worse) == (True, False, True)
    found = verdicts(replace(proof, comparisons=()))
    assert (found.sound, found.useful, found.worse) == (True, None, False)
    assert not verdicts(replace(proof, promises=(Promise("it moved", False, ""),))).sound
