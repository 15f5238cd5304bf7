"""A pair is two judged answers for KTO, and the plan warns of verdicts that lean to one side."""

from __future__ import annotations

from typing import Any

import pytest

from qlmm.data.batching.mixture import Mixture
from qlmm.data.errors import OtherKind
from qlmm.data.sample import Feedback, Kind, Origin, Preference, Sample, Turn
from qlmm.recipe.schema import TrainingSection
from qlmm.training.objective import exemplary, redirected
from qlmm.training.objective import objective as objective_of

PROMPT, ORIGIN = (Turn("user", ("Hi",)),), Origin("rows.jsonl", 1)
PAIR = Preference(PROMPT, "Yes.", "No.", ORIGIN)
GOOD, POOR = PAIR.judged()


def said(good: int, poor: int, weights: tuple[float, ...] = (1.0,), objective: Any = "kto", **extra: Any) -> list[str]:
    rows = [*[GOOD] * good, *[POOR] * poor]
    sources = [0] * good + [len(weights) - 1] * poor
    mixture = Mixture.of(rows, sources, weights)
    return list(objective_of(objective).warnings(TrainingSection(objective=objective, extra=extra), mixture, rows))


def test_a_pair_is_two_rows_for_kto_and_one_for_others() -> None:
    assert objective_of("kto").taught(PAIR) == (GOOD, POOR)
    assert objective_of("orpo").taught(PAIR) == (PAIR,)
    assert objective_of("kto").taught(GOOD) == (GOOD,)


def test_an_undesirable_answer_is_no_example_to_measure_on() -> None:
    rows: list[Sample | Preference | Feedback] = [PAIR, GOOD, POOR, GOOD.sample]
    assert [exemplary(row) for row in rows] == [True, True, False, True]


@pytest.mark.parametrize(("good", "poor"), [(10, 10), (12, 10), (133, 100)])
def test_verdicts_in_balance_are_no_matter(good: int, poor: int) -> None:
    assert said(good, poor) == []


@pytest.mark.parametrize(
    ("good", "poor", "word"), [(10, 0, "every answer is desirable"), (0, 10, "every answer is undesirable")]
)
def test_verdicts_of_one_kind_are_told(good: int, poor: int, word: str) -> None:
    (warning,) = said(good, poor)
    assert warning.startswith(word)


def test_verdicts_out_of_balance_are_told_with_the_weights_that_mend_it() -> None:
    (warning,) = said(10, 40)
    assert "10 desirable and 40 undesirable answers are 0.25 to 1 by weight" in warning
    assert "set training.extra.desirable_weight from 4 to 5.32" in warning
    assert said(10, 40, desirable_weight=4.0) == []
    assert said(10, 40, desirable_weight=5.32) == []
    assert said(10, 40, undesirable_weight=0.25) == []
    assert len(said(10, 10, desirable_weight=2.0)) == 1


def test_an_epoch_is_what_counts() -> None:
    assert said(10, 40, weights=(4.0, 1.0)) == []
    assert said(40, 40, weights=(1.0, 0.25)) != []


def test_other_objectives_have_no_verdicts() -> None:
    assert said(10, 40, objective="dpo") == []


@pytest.mark.parametrize(
    ("found", "objectives"),
    [("preference", "dpo, kto, orpo or simpo"), ("conversation", "sft"), ("feedback", "kto")],
)
def test_rows_of_another_kind_are_sent_to_the_objectives_that_learn_from_them(found: Kind, objectives: str) -> None:
    (problem,) = redirected(OtherKind("a.jsonl: the rows are others", found)).problems
    assert (problem.code, problem.message) == ("D010", "a.jsonl: the rows are others")
    assert problem.help == f"such rows belong to training.objective: {objectives}"
