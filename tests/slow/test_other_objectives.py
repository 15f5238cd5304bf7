"""Runs on judged answers, and on pairs without a reference: proven, from a base and from an SFT adapter, continued."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qlmm.api import Outcome, finetune
from qlmm.core.errors import QlmmError
from qlmm.core.events import Event, StepDone
from qlmm.recipe.load import LoadedRecipe
from qlmm.training.logbook import read_metrics
from qlmm.training.objective import objective as objective_of
from qlmm.training.plan import make_plan
from qlmm.training.run import build
from tests.runs import TinyRun, pair_row

COMMON = ("training.learning_rate=1e-3", "adapter.dropout=0.0")
ALL = ("kto", "orpo", "simpo")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    folder = tmp_path_factory.mktemp("objectives")
    made = TinyRun.make(folder)
    pairs = [pair_row(folder, number, picture=number % 5 != 4) for number in range(20)]
    judged = [
        {**{key: pair[key] for key in ("prompt", "images") if key in pair}, "completion": pair[side], "label": good}
        for number, pair in enumerate(pairs)
        for side, good in [("chosen", True), ("rejected", False)][: 1 + number % 2]
    ]
    for name, rows in (("pairs", pairs), ("judged", judged)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return made


def recipe(tiny: TinyRun, objective: str, name: str, *overrides: str, rows: str = "pairs") -> LoadedRecipe:
    places = (f"data.sources=[{{path: {tiny.folder}/{rows}.jsonl}}]", f"output.dir={tiny.folder}/{name}")
    return tiny.recipe(f"training.objective={objective}", *COMMON, *places, *overrides)


def proven(outcome: Outcome, objective: str) -> None:
    """The run's promises hold, those of a reference where there is one."""
    assert outcome.proof is not None
    assert outcome.proof.holds, outcome.proof.promises
    if objective != "kto":
        assert outcome.proof.reference is None
        return
    assert outcome.proof.reference is not None
    assert outcome.proof.reference.drift == 0
    assert outcome.proof.reference.first_loss == pytest.approx(0.5, abs=1e-6)


def steps(outcome: Outcome) -> list[StepDone]:
    return [event for event in read_metrics(outcome.run_dir / "metrics.jsonl") if isinstance(event, StepDone)]


@pytest.mark.parametrize(
    ("objective", "overrides"),
    [
        ("kto", ("base.quantize=nf4",)),
        ("kto", ("training.losses={apo_zero_unpaired: 1.0}", "training.batch_size=1")),
        ("orpo", ("base.quantize=nf4", "training.gradient_checkpointing=true")),
        ("simpo", ("adapter.connector=lora",)),
    ],
)
def test_a_run_on_pairs_is_proven(tiny: TinyRun, objective: str, overrides: tuple[str, ...], tmp_path: Path) -> None:
    proven(finetune(recipe(tiny, objective, "", f"output.dir={tmp_path}/run", *overrides)), objective)


@pytest.mark.parametrize("objective", ALL)
def test_the_better_answer_becomes_the_likelier_one(tiny: TinyRun, objective: str) -> None:
    plan = make_plan(recipe(tiny, objective, "unused", "training.steps=40", "training.learning_rate=5e-3").recipe)
    model, _ = build(plan)
    trainer = objective_of(objective).trainer()(model, plan, callbacks=[])
    trainer.train()
    trainer.finish()
    margins = [log["rewards/margins"] for log in trainer.state.log_history if "rewards/margins" in log]
    assert sum(margins[-5:]) / 5 > max(margins[0], 0.0)


def test_judged_answers_with_and_without_pictures_are_what_a_plan_is_made_of(tiny: TinyRun) -> None:
    plan = make_plan(recipe(tiny, "kto", "unused", rows="judged").recipe)
    assert {bool(row.images) for row in plan.train} == {True, False}
    assert any("desirable answers are" in warning for warning in plan.facts.warnings)
    assert plan.held_out
    assert all(not row.turns[-1].text.endswith("indeed") for row in plan.held_out)
    assert plan.pairs == ()
    split = make_plan(recipe(tiny, "kto", "unused").recipe)
    assert split.facts.rows_kept == 2 * (20 - len(split.pairs))
    assert split.pairs
    assert split.facts.warnings == ()


@pytest.mark.parametrize("objective", ALL)
def test_a_run_goes_on_from_an_sft_adapter(tiny: TinyRun, objective: str) -> None:
    sft = finetune(tiny.recipe(f"output.dir={tiny.folder}/sft", "training.steps=6"))
    assert sft.adapter is not None
    proven(finetune(recipe(tiny, objective, f"{objective}-after", f"adapter.start_from={sft.adapter}")), objective)


def test_a_continued_run_is_bit_for_bit_the_uninterrupted_one(tiny: TinyRun) -> None:
    """Judged answers, some without a picture, re-computed on the way back."""
    overrides = ("training.gradient_checkpointing=true", "adapter.connector=lora")
    whole = finetune(recipe(tiny, "kto", "whole", *overrides, rows="judged"))
    proven(whole, "kto")

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    parted = recipe(tiny, "kto", "parted", *overrides, rows="judged")
    assert finetune(parted, listener=stop).status == "stopped"
    resumed = finetune(parted)
    assert resumed.status == "finished"
    assert whole.adapter is not None
    assert resumed.adapter is not None
    one, other = (load_file(str(path / "adapter_model.safetensors")) for path in (whole.adapter, resumed.adapter))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [event.loss for event in steps(whole)] == [event.loss for event in steps(resumed)]
    for folder in (whole.adapter, *whole.run_dir.glob("checkpoint-*")):
        assert not (folder / "ref").exists()
    assert not any(".ref." in key for key in one)


def test_accumulated_steps_are_those_of_the_whole_batch(tiny: TinyRun) -> None:
    """Means over pairs of equal weight: two halves give the gradient of the whole."""
    norms = []
    for batch, accumulation in ((4, 1), (2, 2)):
        overrides = (f"training.batch_size={batch}", f"training.accumulation={accumulation}", "training.steps=1")
        plan = make_plan(recipe(tiny, "simpo", "unused", *overrides).recipe)
        model, _ = build(plan)
        trainer = objective_of("simpo").trainer()(model, plan, callbacks=[])
        trainer.train()
        norms.append((trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["grad_norm"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize(
    ("objective", "overrides", "code"),
    [
        ("kto", ("training.batch_size=1",), "T006"),
        ("kto", ("training.losses={sigmoid: 1.0}",), "T004"),
        ("simpo", ("training.losses={sigmoid: 1.0}",), "T004"),
        ("orpo", ("data.sources=[{path: FOLDER/judged.jsonl}]",), "D010"),
        ("dpo", ("data.sources=[{path: FOLDER/judged.jsonl}]",), "D010"),
        ("sft", ("data.sources=[{path: FOLDER/judged.jsonl}]",), "D010"),
        ("kto", ("data.sources=[{path: FOLDER/rows.jsonl}]",), "D010"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tiny: TinyRun, objective: str, overrides: tuple[str, ...], code: str
) -> None:
    placed = [override.replace("FOLDER", str(tiny.folder)) for override in overrides]
    with pytest.raises(QlmmError, match=code):
        finetune(recipe(tiny, objective, "refused", *placed))
    assert not (tiny.folder / "refused").exists()
