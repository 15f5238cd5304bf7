"""Facts survive run.json, whatever their values; a proof without promises proves nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from pydantic import TypeAdapter, ValidationError

from qlmm.proof.records import (
    Answer,
    HeldOutProof,
    PairProof,
    PictureProof,
    PlanFacts,
    Promise,
    Proof,
    to_json,
)
from tests.run_facts import PAIRS_PROOF, PLAN, PROOF

HELD_OUT = HeldOutProof(None, PairProof(3, float("-inf"), 0.0, 0, None, None, None))


@pytest.mark.parametrize(
    "fact", [PLAN, PROOF, PAIRS_PROOF, HELD_OUT, Answer(b"\xff\x00\xfb\xef", "q", "é", "", "\u202eb")]
)
def test_facts_come_back_from_json_equal(fact: object) -> None:
    assert TypeAdapter(type(fact)).validate_json(json.dumps(to_json(fact))) == fact


def test_numbers_that_are_not_finite_stay_valid_json() -> None:
    proof = replace(PROOF, after=PictureProof(1, float("nan"), float("inf"), float("-inf")))
    text = json.dumps(to_json(proof), allow_nan=False)
    after = TypeAdapter(Proof).validate_json(text).after
    assert after is not None
    assert (str(after.right), after.shuffled, after.none) == ("nan", float("inf"), float("-inf"))


def test_a_missing_value_is_refused() -> None:
    raw = to_json(PLAN)
    del raw["steps"]
    with pytest.raises(ValidationError):
        TypeAdapter(PlanFacts).validate_python(raw)


def test_proof_holds_only_when_every_promise_was_kept_and_there_is_one() -> None:
    assert PROOF.holds
    assert not replace(PROOF, promises=()).holds
    assert not replace(PROOF, promises=(*PROOF.promises, Promise("x", False, ""))).holds


def test_totals() -> None:
    assert PLAN.trainable_parameters == 5_123_840 + 4_442_240
    assert PLAN.parameters == sum(part.parameters for part in PLAN.parts)
