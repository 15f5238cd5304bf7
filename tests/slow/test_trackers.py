"""A run whose trackers fail, each in another way, is the run without them, and says that they failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from qlmm.api import finetune
from qlmm.core.events import Event, Warned
from qlmm.training import trackers
from tests.runs import TinyRun

pytestmark = pytest.mark.slow

FEW = ("training.steps=3", "training.save_every=2", "evaluation.answers=0", "evaluation.every=100")


class Setup(TrainerCallback):
    """Cannot be made."""

    def __init__(self) -> None:
        raise ImportError("the package is broken")


class Begin(TrainerCallback):
    """Cannot log in."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        raise OSError("no route to host")


class Log(TrainerCallback):
    """Loses its connection in the second step."""

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, control
        if state.global_step == 2:
            raise TimeoutError("no answer")


class End(TrainerCallback):
    """Cannot say goodbye."""

    def on_train_end(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("it is gone")


def test_a_run_whose_trackers_all_fail_is_finished_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"tensorboard": Setup, "wandb": Begin, "trackio": Log, "mlflow": End}
    monkeypatch.setattr(trackers, "tracker_kind", kinds.__getitem__)
    # Only looked for, and never imported.
    for name in kinds:
        (tmp_path / "packages" / name).mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    run, seen = TinyRun.make(tmp_path), list[Event]()
    outcome = finetune(run.recipe(*FEW, f"output.trackers=[{', '.join(kinds)}]"), listener=seen.append)
    assert outcome.status == "finished"
    expected = [
        "tracker tensorboard gets nothing after step 0: ImportError: the package is broken",
        "tracker wandb gets nothing after step 0: OSError: no route to host",
        "tracker trackio gets nothing after step 2: TimeoutError: no answer",
        "tracker mlflow gets nothing after step 3: RuntimeError: it is gone",
    ]
    assert [event.message for event in seen if isinstance(event, Warned) if "tracker" in event.message] == expected
    assert json.loads((tmp_path / "run/run.json").read_text("utf-8"))["lost_trackers"] == expected
    report = (tmp_path / "run/report.html").read_text("utf-8")
    assert all(line in report for line in expected)
