"""The model card is made of facts: what was measured is in it, what was not is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from qlmm.artifacts.card import card
from qlmm.artifacts.manifest import versions
from qlmm.training.facts import Promise
from tests.run_facts import PROOF
from tests.unit.artifacts.adapters import manifest


def front(text: str) -> dict[str, Any]:
    """The metadata the Hub reads."""
    empty, matter, _ = text.split("---\n", 2)
    assert empty == ""
    facts: dict[str, Any] = yaml.safe_load(matter)
    return facts


def test_the_hub_is_told_what_the_adapter_belongs_to() -> None:
    facts = front(card(manifest(), PROOF))
    assert facts == {
        "base_model": ["llava-hf/llava-1.5-7b-hf"],
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text",
        "tags": ["lora", "vision", "qlmm", "native"],
    }


def test_packaged_weights_are_no_model_of_the_hub() -> None:
    facts = front(card(manifest("assembled"), PROOF))
    assert facts["base_model"] == ["some/llama"]
    assert "assembled" in facts["tags"]


def test_a_base_that_is_packaged_altogether_claims_no_base() -> None:
    made = manifest("assembled")
    parts = {role: facts | {"id": "builtin:x"} for role, facts in made.base["parts"].items()}
    facts = front(card(manifest("assembled", base=made.base | {"parts": parts}), PROOF))
    assert "base_model" not in facts
    assert "base_model_relation" not in facts


def test_the_card_says_what_moved_and_what_did_not() -> None:
    text = card(manifest(), PROOF)
    assert "| connector | 58 | 5,123,840 | 100.0% | 3.41 | — |" in text
    assert "| vision | 0 | 0 | — | — | unchanged |" in text
    assert "| after | 3.894 | 4.643 | 5.020 |" in text
    assert "260 steps on a native base, language model stored as nf4, computed in bf16" in text
    assert "`0123abc`" in text or "| 0123abc |" in text
    assert versions()["qlmm"] in text
    assert "| `rows.jsonl` | 1,234 |" in text


def test_a_broken_promise_cannot_be_overlooked() -> None:
    broken = replace(PROOF, promises=(Promise("connector was trained", False, "0 of 4 tensors moved"),))
    text = card(manifest(), broken)
    assert "- **BROKEN**: connector was trained (0 of 4 tensors moved)" in text
    assert "- kept:" not in text


def test_a_frozen_part_that_changed_cannot_be_overlooked() -> None:
    parts = (replace(PROOF.parts[0], frozen_identical=False), *PROOF.parts[1:])
    assert "CHANGED" in card(manifest(), replace(PROOF, parts=parts))


def test_what_was_not_measured_has_no_place_in_the_card() -> None:
    assert "Held-out loss" not in card(manifest(), replace(PROOF, before=None, after=None))


@pytest.mark.parametrize(("kind", "plain"), [("native", True), ("assembled", False)])
def test_only_a_native_adapter_promises_to_load_without_qlmm(kind: str, plain: bool) -> None:
    text = card(manifest(kind), PROOF)
    assert ("PeftModel.from_pretrained" in text) is plain
    assert ('revision="0123abc"' in text) is plain
    assert 'qlmm.load("PATH")' in text
