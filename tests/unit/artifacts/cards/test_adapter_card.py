"""The model card is made of facts: what was measured is in it, what was not is not."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from qlmm.artifacts.adapter.manifest import versions
from qlmm.artifacts.cards.adapter_card import card, picture_name, placed
from qlmm.artifacts.cards.loading_examples import usage
from qlmm.proof.records import Answer, Comparison, PairProof, Promise
from qlmm.recipe.load import parse_recipe
from tests.run_facts import PAIRS_PROOF, PROOF
from tests.unit.artifacts.adapters import NATIVE, RECIPE, learned, manifest


def front(text: str) -> dict[str, Any]:
    """The metadata the Hub reads."""
    empty, matter, _ = text.split("---\n", 2)
    assert empty == ""
    facts: dict[str, Any] = yaml.safe_load(matter)
    return facts


def test_the_hub_is_told_what_the_adapter_belongs_to() -> None:
    facts = front(card(manifest(), PROOF))
    results = facts.pop("model-index")
    assert facts == {
        "base_model": ["llava-hf/llava-1.5-7b-hf"],
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text",
        "tags": ["lora", "vision", "qlmm", "native", "qlora"],
    }
    ((result,), name) = results[0]["results"], results[0]["name"]
    assert name == "run"
    assert result["dataset"] == {"name": "held-out rows of rows.jsonl", "type": "held-out"}
    assert [(one["type"], one["value"]) for one in result["metrics"]] == [("loss", 3.894), ("loss", 4.643)]


def test_the_metadata_can_be_read_by_the_hub_s_own_client() -> None:
    text = card(manifest(), PAIRS_PROOF)
    read = ModelCard(text)
    assert str(read) == text
    assert [one.metric_type for one in read.data.eval_results] == ["loss", "loss", "accuracy"]


def test_a_loss_that_is_no_number_is_no_result() -> None:
    assert PROOF.after is not None
    lost = replace(PROOF, after=replace(PROOF.after, right=math.nan, shuffled=math.inf))
    assert "model-index" not in front(card(manifest(), lost))


def test_only_data_sets_of_the_hub_are_named_as_such() -> None:
    paths = ["some/rows@v1", "rows.jsonl", "builtin:emoji", "/data/x", "../x", "some/rows.parquet"]
    made = manifest(data=learned(*paths, kept=5))
    text = card(made, PROOF)
    assert front(text)["datasets"] == ["some/rows"]
    assert "| [some/rows@v1](https://huggingface.co/datasets/some/rows) | 5 | not stated |" in text
    assert "| `./x` | 5 | not stated |" in text
    shown = placed(
        text, made, "me/owl", {"some/rows": "cc-by-4.0", "llava-hf/llava-1.5-7b-hf": "llama2"}, unproven=False
    )
    assert "datasets/some/rows) | 5 | cc-by-4.0 |" in shown
    assert "| 0123abc | llama2 |" in shown


def test_only_what_stands_between_marks_is_written_anew() -> None:
    made = manifest()
    text = card(made, PROOF).replace("# Adapter", "First words.\n\n# Adapter", 1) + "\nLast words on me/owl.\n"
    first = placed(text, made, "me/owl", {"llava-hf/llava-1.5-7b-hf": "llama2"}, unproven=False)
    assert "| 0123abc | llama2 |" in first
    second = placed(first, made, "you/cat", {}, unproven=False)
    assert second == placed(text, made, "you/cat", {}, unproven=False)
    assert second.count("me/owl") == 1
    assert "First words.\n\n# Adapter" in second
    assert second.endswith("\nLast words on me/owl.\n")


def test_a_card_without_marks_belongs_to_the_owner() -> None:
    own = "Load it as you like.\n"
    assert placed(own, manifest(), "me/owl", {}, unproven=False).endswith(own)


def test_what_was_no_data_set_of_the_hub_never_becomes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "rows").mkdir(parents=True)
    paths = [
        "some/rows@v1",
        "/data/squad",
        "~/squad",
        "../rows",
        "mine/rows",
        "rows.jsonl",
        "builtin:emoji",
        "/x/r.csv",
    ]
    made = manifest(data=learned(*paths, kept=5))
    text = card(made, PROOF)
    assert front(text)["datasets"] == ["some/rows"]
    assert all(f"| `{name}` |" in text for name in ("./squad", "./mine/rows"))


def test_a_base_in_a_folder_is_no_model_of_the_hub() -> None:
    part = {"id": "models/llava", "revision": None, "config_sha256": "aa"}
    text = card(manifest(base={"kind": "native", "parts": {"model": part}}), PROOF)
    assert "base_model" not in front(text)
    assert "| model | `models/llava` | — | see the base |" in text


def test_held_out_pictures_are_shown_with_what_was_said() -> None:
    said = Answer(b"", "Which | one?\nThis", "an owl", "", "![x](http://evil) <b>" + "y" * 400)
    text = card(manifest(), PROOF, [said] * 6)
    assert text.count("![held-out picture") == 4
    assert f"| ![held-out picture 4]({picture_name(4)}) | Which \\| one? This | an owl | — | \\!\\[x\\]" in text
    assert "y…" in text
    assert "Answers to held-out pictures" not in card(manifest(), PROOF)


def test_a_card_has_no_key_and_no_control_character() -> None:
    key = "hf_" + "aB3dE5gH7j" * 3
    text = card(
        manifest(data=learned("a\x1b]0;x\x07.jsonl", kept=3)), PROOF, [Answer(b"", key, f"*{key}*", "\x9b2J", key)]
    )
    assert "aB3dE5gH7j" not in text
    assert "<redacted>".replace("<", r"\<").replace(">", r"\>") in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "vLLM refuses this adapter, because the whole connector was trained"),
        (["adapter.connector=frozen", "adapter.vision=full"], "because the whole vision was trained"),
        (["adapter.connector=frozen", "adapter.start_from=x"], "because it carries parts of an earlier run"),
        (["adapter.connector=frozen", "adapter.variant=dora"], "The adapter's LoRA is DoRA"),
        (["adapter.connector=lora"], "whether it applies that of the connector depends"),
        (["adapter.connector=frozen", "adapter.r=1000"], "rank 1000, and vLLM takes ranks up to 512"),
        (["adapter.connector=frozen", "adapter.r=9"], "--enable-lora --max-lora-rank 16 --lora-modules adapter=me/owl"),
    ],
)
def test_vllm_is_shown_only_where_it_can(overrides: list[str], said: str) -> None:
    recipe = parse_recipe(RECIPE.format(base=NATIVE), "r.yaml", overrides).recipe
    text = usage(manifest(recipe=recipe), "me/owl")
    assert said in text
    assert text.count("vLLM") <= 2
    assert ("vllm serve llava-hf/llava-1.5-7b-hf --revision 0123abc" in text) is ("max-lora-rank" in said)


def test_packaged_weights_are_no_model_of_the_hub() -> None:
    facts = front(card(manifest("assembled"), PROOF))
    assert facts["base_model"] == ["some/llama"]
    assert "assembled" in facts["tags"]


def test_a_base_that_is_packaged_altogether_claims_no_base() -> None:
    made = manifest("assembled")
    parts = {role: part.model_copy(update={"id": "builtin:x"}) for role, part in made.base.parts.items()}
    facts = front(card(manifest("assembled", base=made.base.model_copy(update={"parts": parts})), PROOF))
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
    assert "**Unproven.**" in text
    assert "**Unproven.**" not in card(manifest(), PROOF)
    assert "- **BROKEN**: connector was trained (0 of 4 tensors moved)" in text
    assert "- kept:" not in text


def test_a_frozen_part_that_changed_cannot_be_overlooked() -> None:
    parts = (replace(PROOF.parts[0], frozen_identical=False), *PROOF.parts[1:])
    assert "CHANGED" in card(manifest(), replace(PROOF, parts=parts))


def test_what_was_not_measured_has_no_place_in_the_card() -> None:
    assert "Held-out loss" not in card(manifest(), replace(PROOF, before=None, after=None))


def test_the_card_of_a_preference_run_says_which_pairs_were_won() -> None:
    text = card(manifest(), PAIRS_PROOF)
    assert "|  | right picture | another row's picture |\n|---|---|---|\n| before | 51.6 % | 50.0 % |" in text
    assert "| after | 84.4 % | 55.0 % |" in text
    words = replace(PAIRS_PROOF, pairs_before=None, pairs_after=PairProof(8, 0.5, 0.25, 0, None, None, None))
    assert "| after | 50.0 % | — |" in card(manifest(), words)
    assert "Held-out pairs" not in card(manifest(), PROOF)


@pytest.mark.parametrize(("kind", "plain"), [("native", True), ("assembled", False)])
def test_only_a_native_adapter_promises_to_load_without_qlmm(kind: str, plain: bool) -> None:
    text = card(manifest(kind), PROOF)
    assert ("PeftModel.from_pretrained" in text) is plain
    assert ('revision="0123abc"' in text) is plain
    assert 'qlmm.load("PATH")' in text


def test_the_card_has_both_verdicts_with_their_reasons() -> None:
    worse = Comparison("before training", "worse", "50.0 % of pairs won, margin -3.000; before 100.0 %, margin +1.250")
    text = card(manifest(), replace(PROOF, comparisons=(worse,)))
    assert "- sound: yes, all 2 promises kept\n- useful: **NO**, worse than before training\n" in text
    assert f"  - worse than before training: {worse.detail}\n" in text


def test_a_picture_that_was_trained_on_is_named_so_in_the_card() -> None:
    seen = Answer(b"", "q", "a", "b", "c", picture_trained=True)
    assert card(manifest(), PROOF, [seen, replace(seen, picture_trained=False)]).count(" (trained on)") == 1
