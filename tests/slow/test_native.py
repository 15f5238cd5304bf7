"""Whole runs on native bases other than LLaVA: plan, train, prove, answer, with a reload in a fresh process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Blip2Config, T5Config

from qlmm.api import finetune, load
from qlmm.core.errors import DataError, ModelError
from qlmm.data.sample import Sample
from qlmm.generation.answers import answer
from qlmm.model.token_losses import token_losses
from qlmm.recipe.load import LoadedRecipe, parse_recipe
from qlmm.training.plan import make_plan
from qlmm.training.rows import measured
from qlmm.training.run import build
from qlmm.training.trainers.sft import SftTrainer
from tests.families.build import Family, family, save
from tests.families.videos import videos_stood_in
from tests.runs import RECIPE, picture_row, text_row

TEMPLATES = {"paligemma": "paligemma", "blip-2": "blip2", "blip-2-t5": "blip2", "instructblip": "blip2"}
# Cross-attention, tiles, token types, a prefix mask, bare query tokens, an encoder-decoder, a bare newline.
BASES = ("mllama", "idefics3", "gemma3", "paligemma", "blip-2", "blip-2-t5", "llava_next")


def base(name: str) -> Family:
    """A tiny family; BLIP-2 also with an encoder-decoder inside."""
    if name != "blip-2-t5":
        return family(name)
    one = family("blip-2")
    tokenizer, config = one.processor.tokenizer, one.config
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=tokenizer.pad_token_id,
        **ends,
    )
    whole = Blip2Config(
        vision_config=config.vision_config.to_dict(),
        qformer_config=config.qformer_config.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=config.num_query_tokens,
        image_token_index=config.image_token_index,
    )
    return replace(one, config=whole)


def recipe(folder: Path, name: str, *overrides: str) -> LoadedRecipe:
    save(base(name), folder / "base")
    rows = [picture_row(folder, number) for number in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    template = [f"base.chat_template={TEMPLATES[name]}"] if name in TEMPLATES else []
    settings = ["data.max_length=2000", "training.steps=6", "base.quantize=nf4", *template, *overrides]
    return parse_recipe(RECIPE.format(folder=folder), "native.yaml", settings)


@pytest.mark.parametrize("name", BASES)
def test_a_native_base_is_trained_proven_and_answers(tmp_path: Path, name: str) -> None:
    outcome = finetune(recipe(tmp_path, name))
    assert outcome.proof is not None
    assert outcome.proof.holds, outcome.proof.promises
    assert outcome.proof.after is not None
    assert {part.part for part in outcome.proof.parts if part.asked} == {"language", "connector"}
    assert outcome.adapter is not None
    loaded = load(outcome.adapter)
    (row,) = loaded.encoder.fit(_rows(tmp_path, name)).samples[:1]
    assert isinstance(answer(loaded.model, loaded.encoder, row, 4), str)


def _rows(folder: Path, name: str) -> list[Sample]:
    return [measured(row) for row in make_plan(recipe(folder, name).recipe).train]


def test_lora_in_all_three_parts_needs_no_whole_module(tmp_path: Path) -> None:
    asked = ("adapter.connector=lora", "adapter.vision=lora", "training.vision_learning_rate=1e-3")
    outcome = finetune(recipe(tmp_path, "idefics3", *asked))
    assert outcome.proof is not None
    assert outcome.proof.holds, outcome.proof.promises
    assert {part.part for part in outcome.proof.parts if part.asked} == {"vision", "language", "connector"}
    assert outcome.adapter is not None
    config = json.loads((outcome.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert not config["modules_to_save"]


def test_a_row_without_a_picture_is_refused_where_the_base_cannot_do_without(tmp_path: Path) -> None:
    asked = recipe(tmp_path, "blip-2")
    with (tmp_path / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(text_row(1)))
    with pytest.raises(DataError, match="D042") as caught:
        finetune(asked)
    assert "rows.jsonl:13" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_rows_with_and_without_a_picture_share_batches_in_a_cross_attention_model(tmp_path: Path) -> None:
    asked = recipe(tmp_path, "mllama", "evaluation.rows=4")
    with (tmp_path / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(json.dumps(text_row(number)) for number in range(6)))
    outcome = finetune(asked)
    assert outcome.proof is not None
    assert outcome.proof.holds, outcome.proof.promises


def test_logits_of_a_frozen_tower_with_batch_norm_stay(tmp_path: Path) -> None:
    """Emu3's picture tokenizer has batch norms, whose statistics would drift in training mode."""
    outcome = finetune(recipe(tmp_path, "emu3", "adapter.connector=frozen"))
    assert outcome.proof is not None
    assert all(part.frozen_identical for part in outcome.proof.parts)
    assert torch.isfinite(torch.tensor(outcome.proof.after.right if outcome.proof.after else 0.0))


@pytest.mark.parametrize("name", ["llava_next", "florence2"])
def test_stage_two_carries_a_connector_with_bare_parameters_and_buffers(tmp_path: Path, name: str) -> None:
    template = ("base.chat_template=blip2",) if name == "florence2" else ()
    first = finetune(recipe(tmp_path, name, *template))
    assert first.proof is not None
    assert first.proof.holds, first.proof.promises
    later = (f"adapter.start_from={first.adapter}", "adapter.connector=frozen", f"output.dir={tmp_path}/second")
    second = finetune(recipe(tmp_path, name, *template, *later))
    assert second.proof is not None
    assert second.proof.holds, second.proof.promises
    assert {part.part for part in second.proof.parts if part.trained_tensors} == {"language"}


def test_lora_cannot_continue_a_connector_that_was_trained_whole(tmp_path: Path) -> None:
    first = finetune(recipe(tmp_path, "llava_next"))
    later = (f"adapter.start_from={first.adapter}", "adapter.connector=lora", f"output.dir={tmp_path}/second")
    with pytest.raises(ModelError, match="M036"):
        finetune(recipe(tmp_path, "llava_next", *later))
    assert not (tmp_path / "second").exists()


def test_lora_in_a_query_transformer_leaves_out_what_nothing_reads(tmp_path: Path) -> None:
    outcome = finetune(recipe(tmp_path, "instructblip", "adapter.connector=lora"))
    assert outcome.proof is not None
    assert outcome.proof.holds, outcome.proof.promises


def test_a_tower_that_gives_tokens_cannot_be_trained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="M037"):
        finetune(recipe(tmp_path, "emu3", "adapter.vision=lora", "adapter.connector=frozen"))


def test_batches_of_both_kinds_are_refused_where_the_processor_takes_none(tmp_path: Path) -> None:
    asked = recipe(tmp_path, "florence2", "base.chat_template=blip2")
    with (tmp_path / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(json.dumps(text_row(number)) for number in range(4)))
    with pytest.raises(DataError, match="D043"):
        finetune(asked)
    assert not (tmp_path / "run").exists()


def test_a_question_that_is_a_picture_alone_is_measured_without_it(tmp_path: Path) -> None:
    asked = recipe(tmp_path, "idefics3")
    rows = [picture_row(tmp_path, number) for number in range(12)]
    for row in rows:
        row["messages"][0]["content"] = "<image>"  # type: ignore[index]  # a list of turns
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    outcome = finetune(asked)
    assert outcome.proof is not None
    assert outcome.proof.holds, outcome.proof.promises


def test_the_loss_that_is_trained_is_the_loss_that_is_measured(tmp_path: Path) -> None:
    """Aya Vision's own forward does not scale its logits, TRL's head would."""
    with videos_stood_in():
        plan = make_plan(recipe(tmp_path, "aya_vision", "data.max_length=4000").recipe)
        model, _ = build(plan)
        trainer = SftTrainer(model, plan, callbacks=[])
    batch = plan.encoder.batch([measured(row) for row in plan.train[:2]])
    labels = batch["labels"]
    model.eval()
    expected = token_losses(model, {name: value for name, value in batch.items() if name != "labels"}, labels).mean()
    assert float(trainer.compute_loss(model, dict(batch))) == pytest.approx(float(expected), rel=1e-4)
