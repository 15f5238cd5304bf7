"""A record comes back equal from the disk, says nothing of what is not known, and refuses what is not one."""

from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from qlmm.proof.records import Answer, HeldOutProof, PictureProof
from qlmm.training.run_dir import Before, RunRecord
from tests.run_facts import PLAN, PROOF, record


def test_a_record_comes_back_equal_pictures_and_lost_losses_included() -> None:
    lost = HeldOutProof(PictureProof(4, math.inf, 1.0, 2.0), None)
    whole = record().model_copy(
        update={
            "status": "finished",
            "before": Before(held_out=lost, answers=("a cat",)),
            "proof": PROOF,
            "adapter": "adapter",
            "answers": (Answer(b"\x89PNG\xff", "what?", "a cat", "x", "y"),),
        }
    )
    assert RunRecord.model_validate_json(whole.to_text()) == whole
    raw = json.loads(whole.to_text())
    assert raw["before"]["held_out"]["pictures"]["right"] == "Infinity"
    assert raw["answers"][0]["picture"] == "iVBOR_8="


def test_what_is_not_known_yet_is_not_written() -> None:
    raw = json.loads(record().to_text())
    of_the_start = {"version", "id", "recipe", "recipe_file", "overrides", "versions", "environment", "base", "data"}
    assert raw.keys() == of_the_start | {"changes", "plan", "status", "left_out"}
    assert raw["data"] == {
        "sha256": "f" * 64,
        "sources": [
            {"path": "rows.jsonl", "format": "messages", "weight": 1.0, "rows": 30, "kept": 28, "text_only": 2}
        ],
    }
    assert raw["plan"]["steps"] == PLAN.steps


@pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"status": "new"}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        RunRecord.model_validate_json(text)
