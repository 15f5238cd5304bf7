"""Whatever was trained, merged it says the same; and an assembled model becomes an ordinary one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from qlmm.api import Outcome, finetune
from qlmm.artifacts.adapter.load import load
from qlmm.artifacts.adapter.verify import verify
from qlmm.artifacts.export.export import Wishes, export
from qlmm.artifacts.merge.merge import Settings, merge
from qlmm.artifacts.safetensors_stream import header
from qlmm.core.errors import ModelError
from qlmm.core.files import file_sha256
from qlmm.proof.probe import probe_rows
from qlmm.training.plan import Plan, make_plan
from tests.families.build import family, save, tiny_model
from tests.families.matrix import keys_of, recipe_for, write_rows
from tests.families.merging import adapter_of, merged_equals, shaken
from tests.families.videos import videos_stood_in
from tests.merge_cases import CASES, assembled
from tests.runs import TinyRun
from tests.tiny import template, tiny_llava, tiny_processor

pytestmark = pytest.mark.slow

EXACT = 1e-5
# Dequantised weights and LoRA are summed before the product instead of after it; nothing else differs.
DEQUANTISED = 2e-6


def all_files(folder: Path) -> dict[str, str]:
    return {str(path): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["adapter.variant=rslora"],
        ["adapter.variant=dora"],
        ["adapter.variant=pissa"],
        ["adapter.variant=olora"],
        ["adapter.connector=lora"],
        ["adapter.vision=lora"],
        ["adapter.vision=full"],
        ["adapter.language=frozen"],
        ["adapter.targets=[q_proj]"],
    ],
    ids=lambda words: words[0] if words else "plain",
)
def test_a_merged_model_says_what_base_and_adapter_say(overrides: list[str], tmp_path: Path) -> None:
    run = TinyRun.make(tmp_path)
    before = all_files(run.folder / "base")
    assert merged_equals(make_plan(run.recipe(*overrides).recipe), tmp_path) <= EXACT
    assert all_files(run.folder / "base") == before, "the source was touched"


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    run = TinyRun.make(tmp_path)
    processor = tiny_processor("vicuna")
    base = tiny_model(family("llava"))
    config = AutoModelForImageTextToText.from_pretrained(run.folder / "base").config
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    base = type(base)(config)
    base.save_pretrained(run.folder / "base")
    processor.save_pretrained(run.folder / "base")
    assert merged_equals(make_plan(run.recipe().recipe), tmp_path) <= EXACT
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert merged.lm_head.weight is merged.get_input_embeddings().weight


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "qwen3_5_moe"], ids=["transposed", "one-by-one"])
def test_lora_on_fused_experts_in_whatever_form_the_files_keep_them(name: str, tmp_path: Path) -> None:
    one = family(name)
    with videos_stood_in():
        save(one, tmp_path / "base")
        write_rows(tmp_path)
        recipe = recipe_for(tmp_path, "none", *keys_of(one), "adapter.targets=[all-linear, experts]")
        plan = make_plan(recipe)
        assert plan.placement.experts
        assert merged_equals(plan, tmp_path) <= EXACT


def test_shards_can_be_cut_anew_and_the_dtype_chosen(tmp_path: Path) -> None:
    run = TinyRun.make(tmp_path)
    plan = make_plan(run.recipe().recipe)
    apart = merged_equals(plan, tmp_path, Settings(dtype="bf16", shard_bytes=100_000, measured=False))
    assert EXACT < apart < 0.1
    shards = sorted((tmp_path / "merged").glob("*.safetensors"))
    assert len(shards) > 3
    assert {one.dtype for path in shards for one in header(path)} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", CASES)
def test_an_assembled_model_says_the_same_once_merged(name: str, tmp_path: Path) -> None:
    plan = make_plan(assembled(tmp_path, CASES[name]).recipe)
    assert merged_equals(plan, tmp_path) <= EXACT
    card = (tmp_path / "merged" / "README.md").read_text()
    assert ("qlmm.model.assembled" in card) is (name == "abstractor")


PLAIN = """
import json, sys
sys.modules["qlmm"] = None
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder = sys.argv[1]
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
processor = AutoProcessor.from_pretrained(folder)
talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]}]
text = processor.apply_chat_template(talk, add_generation_prompt=True)
inputs = processor(images=Image.new("RGB", (40, 40), (255, 0, 0)), text=text, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits[0, -1]
print(json.dumps({"class": type(model).__module__, "ids": inputs["input_ids"][0].tolist(), "logits": logits.tolist()}))
"""


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_an_assembled_model_is_an_ordinary_one_where_qlmm_cannot_be_imported(name: str, tmp_path: Path) -> None:
    plan = make_plan(assembled(tmp_path, CASES[name]).recipe)
    model = shaken(plan)
    merge(str(adapter_of(plan, model, tmp_path)), tmp_path / "merged", Settings(measured=False))
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path / "merged")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["class"] == "transformers.models.llava.modeling_llava"
    red = next(row for row in plan.train if row.images and "red" in row.turns[-1].text)
    pixels = plan.encoder.batch([red])["pixel_values"]
    with torch.no_grad():
        ours = model(input_ids=torch.tensor([said["ids"]]), pixel_values=pixels).logits[0, -1]
    assert torch.allclose(torch.tensor(said["logits"]), ours, atol=EXACT)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyRun, Outcome]:
    """A finished run on a 4-bit base."""
    run = TinyRun.make(tmp_path_factory.mktemp("nf4"))
    return run, finetune(run.recipe("base.quantize=nf4", "training.steps=4", "training.learning_rate=1e-2"))


def test_both_ways_are_measured_and_the_closer_one_is_recommended(
    quantised: tuple[TinyRun, Outcome], tmp_path: Path
) -> None:
    run, _ = quantised
    lines: list[str] = []
    made = merge(str(run.folder / "run"), tmp_path / "merged", Settings(), lines.append)
    assert made.error is not None
    trained, original = made.error.ways
    assert (trained.way, original.way) == ("trained", "original")
    assert trained.largest <= DEQUANTISED < 100 * DEQUANTISED < original.largest
    assert 0 <= trained.divergence < 1e-9 < original.divergence
    assert (made.error.rows, made.error.held_out) == (6, 4)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert f"| trained (this model) | {trained.largest:.3g} " in card
    again = merge(str(run.folder / "run"), tmp_path / "other", Settings(onto="original"))
    assert again.error is not None
    assert again.error.ways[0].largest == pytest.approx(original.largest, rel=1e-3)
    assert replace(again.error.ways[1], largest=0, mean=0) == replace(
        trained, largest=0, mean=0, divergence=again.error.ways[1].divergence
    )


def test_merged_onto_the_base_as_trained_the_logits_are_those_of_the_quantised_model(
    quantised: tuple[TinyRun, Outcome], tmp_path: Path
) -> None:
    run, outcome = quantised
    assert outcome.adapter is not None
    merge(str(run.folder / "run"), tmp_path / "merged", Settings(measured=False))
    loaded = load(outcome.adapter)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    for row in probe_rows(outcome.adapter):
        batch = {name: value for name, value in loaded.encoder.batch([row]).items() if name != "labels"}
        with torch.no_grad():
            assert (merged(**batch).logits - loaded.model(**batch).logits).abs().max() <= DEQUANTISED


def test_what_was_not_measured_is_not_claimed(quantised: tuple[TinyRun, Outcome], tmp_path: Path) -> None:
    run, _ = quantised
    made = merge(str(run.folder / "run"), tmp_path / "merged", Settings(measured=False))
    assert made.error is None
    assert "Not measured." in (tmp_path / "merged" / "README.md").read_text()


def test_rows_that_are_gone_leave_the_probe(quantised: tuple[TinyRun, Outcome], tmp_path: Path) -> None:
    run, _ = quantised
    rows = run.folder / "rows.jsonl"
    content = rows.read_text()
    lines: list[str] = []
    try:
        rows.write_text(content.replace("what colour", "which colour"))
        made = merge(str(run.folder / "run"), tmp_path / "merged", Settings(), lines.append)
    finally:
        rows.write_text(content)
    assert made.error is not None
    assert (made.error.rows, made.error.held_out) == (2, 0)
    assert any("only the probe's are compared" in line for line in lines)


def plan_of(run: TinyRun, *overrides: str) -> Plan:
    return make_plan(run.recipe(*overrides).recipe)


def test_the_folder_holds_what_a_user_needs(tmp_path: Path) -> None:
    run = TinyRun.make(tmp_path)
    assert merged_equals(plan_of(run), tmp_path) <= EXACT
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert names == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert template("vicuna") == (tmp_path / "merged" / "chat_template.jinja").read_text()


def test_a_base_whose_weights_were_exchanged_is_noticed(tmp_path: Path) -> None:
    run = TinyRun.make(tmp_path / "tiny")
    finetune(run.recipe("training.steps=2"))
    tiny_llava(tiny_processor("vicuna"), seed=7).save_pretrained(run.folder / "base")
    for make in (
        lambda out: merge(str(run.folder / "run"), out, Settings()),
        lambda out: export(str(run.folder / "run"), "hf", out, Wishes()),
        lambda out: export(str(run.folder / "run"), "peft", out, Wishes()),
    ):
        with pytest.raises(ModelError, match="A016"):
            make(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_run_in_bf16_is_read_back_in_bf16(tmp_path: Path) -> None:
    run = TinyRun.make(tmp_path / "tiny")
    finetune(run.recipe("training.steps=2", "training.precision=bf16"))
    assert load(run.folder / "run" / "adapter").precision.name == "bf16"
    answers = verify(run.folder / "run" / "adapter").checks[-1]
    assert "largest difference of logits 0 " in answers.found
    made = merge(str(run.folder / "run"), tmp_path / "merged", Settings())
    assert made.error is not None
    trained, original = made.error.ways
    assert trained.way == "trained"
    # The largest of so few values is one rounding of bf16 or two; which way is closer shows in all of them.
    assert trained.mean < original.mean
    assert trained.divergence < original.divergence


def test_a_merged_model_that_says_no_numbers_is_not_made(
    quantised: tuple[TinyRun, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = quantised
    honest = AutoModelForImageTextToText.from_pretrained

    def spoilt(*args: Any, **options: Any) -> Any:
        model = honest(*args, **options)
        if ".merged.part" in str(args[0]):
            next(iter(model.parameters())).data.fill_(float("nan"))
        return model

    monkeypatch.setattr("qlmm.artifacts.merge.fidelity.AutoModelForImageTextToText.from_pretrained", spoilt)
    with pytest.raises(ModelError, match="A036"):
        merge(str(run.folder / "run"), tmp_path / "merged", Settings())
    assert list(tmp_path.iterdir()) == []
