"""Preference runs: the reference is the start, stays it, and pictures matter; from a base and from an SFT adapter."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qlmm.api import Outcome, finetune
from qlmm.core.errors import QlmmError
from qlmm.core.events import PairsEvaluated, StepDone
from qlmm.model.numerics.precision import Precision
from qlmm.recipe.load import LoadedRecipe
from qlmm.training.logbook import read_metrics
from qlmm.training.objective import objective as objective_of
from qlmm.training.plan import make_plan
from qlmm.training.run import build
from tests.runs import TinyRun, pair_row

DPO = ("training.objective=dpo", "training.learning_rate=1e-3", "adapter.dropout=0.0")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    folder = tmp_path_factory.mktemp("pairs")
    made = TinyRun.make(folder)
    rows = [pair_row(folder, number, picture=number % 5 != 4) for number in range(20)]
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return made


def recipe(tiny: TinyRun, name: str, *overrides: str) -> LoadedRecipe:
    places = (f"data.sources=[{{path: {tiny.folder}/pairs.jsonl}}]", f"output.dir={tiny.folder}/{name}")
    return tiny.recipe(*DPO, *places, *overrides)


def kept(outcome: Outcome) -> dict[str, bool]:
    assert outcome.proof is not None
    return {promise.name: promise.kept for promise in outcome.proof.promises}


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("full", ()),
        ("lora", ("adapter.connector=lora",)),
        ("nf4", ("base.quantize=nf4",)),
        ("mpo", ("training.losses={sigmoid: 0.8, bco_pair: 0.2, sft: 1.0}",)),
    ],
)
def test_a_run_begins_at_its_reference_and_leaves_it_alone(
    tiny: TinyRun, name: str, overrides: tuple[str, ...]
) -> None:
    outcome = finetune(recipe(tiny, name, *overrides))
    assert outcome.proof is not None
    assert outcome.proof.holds, outcome.proof.promises
    reference = outcome.proof.reference
    assert reference is not None
    assert reference.drift == 0
    if name != "mpo":
        assert reference.first_loss == pytest.approx(math.log(2), abs=1e-4)
    assert outcome.adapter is not None
    assert not (outcome.adapter / "ref").exists()
    assert not any(".ref." in key for key in load_file(str(outcome.adapter / "adapter_model.safetensors")))
    for checkpoint in outcome.run_dir.glob("checkpoint-*"):
        assert not (checkpoint / "ref").exists()


def test_from_an_sft_adapter_the_reference_is_that_adapter_with_its_connector(tiny: TinyRun) -> None:
    sft = finetune(tiny.recipe(f"output.dir={tiny.folder}/sft", "training.steps=6"))
    assert sft.adapter is not None
    outcome = finetune(recipe(tiny, "after", f"adapter.start_from={sft.adapter}"))
    assert outcome.proof is not None
    assert outcome.proof.holds, outcome.proof.promises
    assert outcome.proof.reference is not None
    assert outcome.proof.reference.first_loss == pytest.approx(math.log(2), abs=1e-4)
    assert outcome.proof.before is not None
    assert sft.proof is not None
    assert sft.proof.after is not None


def test_reference_log_probabilities_are_the_same_after_ten_steps(tiny: TinyRun) -> None:
    plan = make_plan(recipe(tiny, "unused", "training.steps=10").recipe)
    model, _ = build(plan)
    trainer = objective_of("dpo").trainer()(model, plan, callbacks=[])
    batch = plan.encoder.pairs(plan.train[:4])  # type: ignore[arg-type]  # pairs, as the objective asks
    before = [side.clone() for side in trainer.compute_ref_log_probs(model, batch)]
    trainer.train()
    after = trainer.compute_ref_log_probs(model, batch)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(before, after, strict=True))
    assert trainer.finish() == 0


def test_a_carried_part_stays_frozen_though_adapters_are_switched(tiny: TinyRun) -> None:
    sft = finetune(tiny.recipe(f"output.dir={tiny.folder}/carry", "training.steps=4"))
    frozen = recipe(tiny, "carried", f"adapter.start_from={sft.adapter}", "adapter.connector=frozen")
    outcome = finetune(frozen)
    assert outcome.proof is not None
    assert outcome.proof.holds, outcome.proof.promises
    assert {part.part for part in outcome.proof.parts if part.trained_tensors} == {"language"}


def test_a_continued_run_is_bit_for_bit_the_uninterrupted_one(tiny: TinyRun) -> None:
    whole = finetune(recipe(tiny, "whole"))
    finetune(recipe(tiny, "parted", "training.steps=4"))
    assert whole.adapter is not None
    # Steps are part of the schedule: a run that stopped half-way is made by a signal in the SFT tests; here the trainer
    # itself is continued.
    plan = make_plan(recipe(tiny, "again").recipe)
    model, _ = build(plan)
    trainer = objective_of("dpo").trainer()(model, plan, callbacks=[])
    trainer.train()
    trainer.finish()
    stored = load_file(str(whole.adapter / "adapter_model.safetensors"))
    values = {name.replace(".default", "").replace(".modules_to_save", ""): p for name, p in model.named_parameters()}
    assert all(torch.equal(values[name].cpu(), value) for name, value in stored.items())


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        (("training.losses={sigmiod: 1.0}",), "T004"),
        (("training.extra={beta: 0}",), "T004"),
        (("training.extra={beta: -1.0}",), "T004"),
        (("training.objective=sft", "training.losses={ipo: 1.0}"), "T004"),
        (("training.losses={exo_pair: 1.0}",), "T004"),
        (("training.extra={label_smoothing: 0.1}",), "T004"),
        (("training.extra={f_divergence_type: nonsense}",), "T004"),
        (("training.losses={nca_pair: 1.0}", "training.extra={f_divergence_type: js_divergence}"), "T004"),
        (("training.losses={aot: 1.0}", "training.extra={use_weighting: true}"), "T004"),
        (("training.losses={sft: 1.0, sigmoid: 1.0}", "training.extra={use_weighting: true}"), "T004"),
        (("training.losses={robust: 1.0}", "training.extra={label_smoothing: 0.5}"), "T004"),
        (("training.objective=sft",), "D010"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tiny: TinyRun, overrides: tuple[str, ...], code: str
) -> None:
    with pytest.raises(QlmmError, match=code):
        finetune(recipe(tiny, "refused", *overrides))
    assert not (tiny.folder / "refused").exists()


def test_a_pair_that_is_too_long_is_dropped_and_counted(tiny: TinyRun) -> None:
    long = pair_row(tiny.folder, 3) | {"rejected": "no " * 500}
    rows = [*(tiny.folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines(), json.dumps(long)]
    (tiny.folder / "long.jsonl").write_text("\n".join(rows), encoding="utf-8")
    asked = recipe(tiny, "long", f"data.sources=[{{path: {tiny.folder}/long.jsonl}}]", "evaluation.rows=1")
    facts = make_plan(asked.recipe).facts
    assert sum(facts.rows_dropped.values()) + facts.rows_kept + facts.held_out_rows == 21


def test_computing_needs_no_gpu_precision(tiny: TinyRun) -> None:
    assert make_plan(recipe(tiny, "cpu").recipe).precision == Precision("cpu", "fp32")


def test_a_run_tells_which_held_out_pairs_it_wins_and_how_far_it_went(tiny: TinyRun) -> None:
    outcome = finetune(recipe(tiny, "told"))
    assert outcome.proof is not None
    before, after = outcome.proof.pairs_before, outcome.proof.pairs_after
    assert before is not None
    assert after is not None
    assert before.rows == after.rows == 4
    assert after.swapped_rows > 0
    assert (before.kl, after.kl is not None and after.kl > 0) == (None, True)
    assert after.margin > before.margin
    events = read_metrics(outcome.run_dir / "metrics.jsonl")
    steps = [event for event in events if isinstance(event, StepDone)]
    assert len(steps) == 8
    assert all({"rewards/margins", "rewards/accuracies", "logps/chosen"} <= event.metrics.keys() for event in steps)
    assert steps[0].metrics["rewards/margins"] == pytest.approx(0, abs=1e-4)
    on_the_way = [event for event in events if isinstance(event, PairsEvaluated)]
    assert [event.step for event in on_the_way] == [0, 3, 6, 8]
    assert [event.kl is not None and event.kl > 0 for event in on_the_way] == [False, True, True, True]
    assert f"{after.rows} held-out pairs" in (outcome.run_dir / "report.html").read_text(encoding="utf-8")
    assert (outcome.run_dir / "preferences.png").exists()
    assert outcome.adapter is not None
    assert "Held-out pairs" in (outcome.adapter / "README.md").read_text(encoding="utf-8")


def test_a_run_continued_at_its_last_step_remembers_the_pairs_before_and_has_no_reference(tiny: TinyRun) -> None:
    outcome = finetune(recipe(tiny, "remembered"))
    assert outcome.proof is not None
    assert outcome.adapter is not None
    # As after a kill between the last checkpoint and the adapter.
    shutil.rmtree(outcome.adapter)
    record = json.loads((outcome.run_dir / "run.json").read_text(encoding="utf-8"))
    (outcome.run_dir / "run.json").write_text(json.dumps(record | {"status": "unfinished"}), encoding="utf-8")
    again = finetune(recipe(tiny, "remembered"))
    assert again.status == "finished"
    assert again.proof is not None
    assert again.proof.pairs_before == outcome.proof.pairs_before
    assert outcome.proof.pairs_after is not None
    assert again.proof.pairs_after == replace(outcome.proof.pairs_after, kl=None)


def test_an_adapter_of_another_base_or_another_scale_is_no_start(tiny: TinyRun, tmp_path: Path) -> None:
    sft = finetune(tiny.recipe(f"output.dir={tiny.folder}/start", "training.steps=2"))
    assert sft.adapter is not None
    with pytest.raises(QlmmError, match=r"M054.*lora_alpha 32, this recipe 8"):
        make_plan(recipe(tiny, "scaled", f"adapter.start_from={sft.adapter}", "adapter.alpha=8").recipe)
    elsewhere = shutil.copytree(sft.adapter, tmp_path / "adapter")
    facts = json.loads((elsewhere / "qlmm.json").read_text(encoding="utf-8"))
    for change in ({"id": "hub/one"}, {"config_sha256": "0" * 64}):
        facts["base"]["parts"]["model"] |= change
        (elsewhere / "qlmm.json").write_text(json.dumps(facts), encoding="utf-8")
        asked = recipe(tiny, "other", f"adapter.start_from={elsewhere}")
        if "config_sha256" in change:
            with pytest.raises(QlmmError, match=r"M053.*was trained on hub/one"):
                make_plan(asked.recipe)
        else:
            assert make_plan(asked.recipe).earlier is not None
