"""No number that is not finite is sealed or published, and no full disk costs more than the save that it stopped."""

from __future__ import annotations

import json
import os
import resource
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trl import SFTTrainer

from qlmm import api
from qlmm.api import finetune
from qlmm.core.errors import RunError
from qlmm.core.events import Event, Saved, StepDone, StepSkipped, Warned
from qlmm.core.seal import verify
from qlmm.model.numerics.finite import not_finite
from qlmm.proof.records import PlanFacts
from qlmm.report import run_report
from qlmm.training.logbook import read_metrics
from tests.runs import TinyRun

pytestmark = pytest.mark.slow

QUIET = ("evaluation.answers=0", "evaluation.every=100")


class _Stop(Exception):
    """The test's own way to end a run at a given event."""


def _poison(monkeypatch: pytest.MonkeyPatch, *, losses: set[int], gradients: set[int]) -> None:
    """Make the loss, or the gradient of a finite loss, NaN in steps counted from 1."""
    honest = SFTTrainer.compute_loss

    def poisoned(self: Any, *args: object, **kwargs: object) -> torch.Tensor:
        loss: torch.Tensor = honest(self, *args, **kwargs)
        step = self.state.global_step + 1
        if step in gradients:
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss * float("nan") if step in losses else loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", poisoned)


@pytest.mark.parametrize("clip", ["0", "1.0"])
def test_a_gradient_that_is_not_finite_ends_the_run_clipped_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: str
) -> None:
    run = TinyRun.make(tmp_path)
    _poison(monkeypatch, losses=set(), gradients={3})
    with pytest.raises(RunError, match=r"(?s)G002.*a gradient is nan at step 3; no weight was changed by it"):
        finetune(run.recipe(f"training.extra.max_grad_norm={clip}", *QUIET))
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not_finite(tmp_path / "run/checkpoint-2") == []


def test_skipped_steps_change_nothing_and_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = TinyRun.make(tmp_path), list[Event]()
    _poison(monkeypatch, losses={3, 6}, gradients={5})
    outcome = finetune(
        run.recipe(
            "training.on_nonfinite=skip", "training.save_every=1", "training.keep=9", "training.log_every=2", *QUIET
        ),
        listener=seen.append,
    )
    folder = tmp_path / "run"
    assert outcome.status == "finished"
    assert outcome.proof is not None
    assert outcome.proof.skipped == (3, 5, 6)
    assert [one.step for one in seen if isinstance(one, StepSkipped)] == [3, 5, 6]
    losses = [one.loss for one in seen if isinstance(one, StepDone)]
    assert losses
    assert all(4 < loss < 8 for loss in losses)
    weights = [load_file(folder / f"checkpoint-{step}/adapter_model.safetensors") for step in range(1, 9)]
    moved = [any(not torch.equal(then[name], now[name]) for name in then) for then, now in pairwise(weights)]
    assert moved == [True, False, True, False, False, True, True]
    assert [wrong for step in range(1, 9) for wrong in not_finite(folder / f"checkpoint-{step}")] == []
    assert json.loads((folder / "run.json").read_text())["proof"]["skipped"] == [3, 5, 6]
    assert "steps 3, 5, 6" in (folder / "report.html").read_text("utf-8")
    assert [one.step for one in read_metrics(folder / "metrics.jsonl") if isinstance(one, StepSkipped)] == [3, 5, 6]


def test_ten_skipped_steps_in_a_row_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TinyRun.make(tmp_path)
    _poison(monkeypatch, losses=set(range(2, 99)), gradients=set())
    with pytest.raises(RunError, match="loss is nan at step 11, the last of 10 in a row that were not taken"):
        finetune(run.recipe("training.on_nonfinite=skip", "training.steps=20", *QUIET))


def test_a_held_out_loss_that_is_not_finite_is_no_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qlmm.evaluation import heldout

    run, honest = TinyRun.make(tmp_path), heldout.token_losses
    monkeypatch.setattr(heldout, "token_losses", lambda *given: honest(*given) * float("nan"))
    with pytest.raises(RunError, match=r"(?s)G005.*held-out losses at step 0: right is nan"):
        finetune(run.recipe(*QUIET))


def test_a_disk_that_is_full_in_the_middle_of_a_save_costs_that_save_only(tmp_path: Path) -> None:
    """Writers in Python, C++ and Rust all meet the limit, which stands for a full disk."""
    run, before = TinyRun.make(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    folder = tmp_path / "run"
    try:
        for limit in (0, 2_000, 60_000):

            def fill(event: Event, limit: int = limit) -> None:
                if isinstance(event, StepDone) and event.step == 4:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

            with pytest.raises(RunError, match=r"(?s)O005.*checkpoint 4 could not be written"):
                finetune(run.recipe(*QUIET), listener=fill)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
            assert verify(folder / "checkpoint-2") == []
            assert not (folder / ".part").exists()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert finetune(run.recipe(*QUIET)).status == "finished"


def test_a_continued_run_obeys_new_intervals_and_names_other_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = TinyRun.make(tmp_path), list[Event]()

    def stop(event: Event) -> None:
        if isinstance(event, Saved):
            raise _Stop

    with pytest.raises(_Stop):
        finetune(run.recipe(*QUIET), listener=stop)
    found = api.versions()
    monkeypatch.setattr(api, "versions", lambda: found | {"peft": "0.0.1"})
    monkeypatch.setenv("TORCH_LINALG_PREFER_CUSOLVER", "1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    changes = ("training.save_every=3", "training.log_every=4", "training.keep=1")
    obeyed, plans = list[bool](), list[PlanFacts]()

    def listen(event: Event) -> None:
        seen.append(event)
        obeyed.append("ACCELERATE_MIXED_PRECISION" in os.environ)

    outcome = finetune(run.recipe(*changes, *QUIET), listener=listen, planned=plans.append)
    assert not any(obeyed)
    assert [warning for warning in plans[0].warnings if "not obeyed: ACCELERATE_MIXED_PRECISION" in warning]
    assert [warning for warning in plans[0].warnings if "TORCH_LINALG_PREFER_CUSOLVER=1" in warning]
    assert [one.step for one in seen if isinstance(one, Saved)] == [3, 6, 8]
    assert [one.step for one in seen if isinstance(one, StepDone)] == [4, 8]
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-8"]
    (warning,) = [one.message for one in seen if isinstance(one, Warned)]
    assert f"peft {found['peft']} → 0.0.1, TORCH_LINALG_PREFER_CUSOLVER unset → 1" in warning
    assert outcome.adapter is not None
    assert json.loads((outcome.adapter / "qlmm.json").read_text())["exact"] is False
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["recipe"]["training"]["save_every"] == 3
    assert record["changes"] == [f"peft {found['peft']} → 0.0.1", "TORCH_LINALG_PREFER_CUSOLVER unset → 1"]


@pytest.mark.parametrize("lost", ["report.html", "loss.png"])
def test_a_run_that_was_killed_before_its_report_gets_it_on_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    run, name = TinyRun.make(tmp_path), "write_report" if lost == "report.html" else "loss_png"

    def killed(*_: object) -> None:
        raise _Stop

    with monkeypatch.context() as patch:
        patch.setattr(run_report, name, killed)
        with pytest.raises(_Stop):
            finetune(run.recipe(*QUIET))
    folder = tmp_path / "run"
    assert not (folder / lost).exists()
    outcome = finetune(run.recipe(*QUIET))
    assert outcome.status == "already"
    assert (folder / lost).is_file()
    assert "promises kept: the run did what its recipe says" in (folder / "report.html").read_text("utf-8")
