"""What befalls a run from outside: signals to all of its processes, killed workers, broken pictures."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from qlmm.api import finetune
from qlmm.core.errors import RecipeError, RunError
from qlmm.core.events import Event, Saved, StepDone, Warned
from qlmm.data.batching.collators import Collator
from qlmm.training.logbook import read_metrics
from qlmm.training.trainers.base import PartsTrainer
from qlmm.training.trainers.sft import SftTrainer
from tests.runs import RECIPE, TinyRun, pair_row

pytestmark = pytest.mark.slow

# `make stress` takes more.
TRIES = int(os.environ.get("QLMM_STRESS", "20"))
LONG = (
    "training.steps=9000", "training.save_every=9000", "training.keep=99", "training.workers=2",
    "evaluation.every=9000", "evaluation.rows=1", "evaluation.answers=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Fresh processes that have everything imported."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["qlmm.api", "qlmm.training.trainers.sft", "tests.runs", "tests.slow.test_steady"])
    return made


@pytest.fixture
def tiny(tmp_path: Path) -> TinyRun:
    run = TinyRun.make(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE.format(folder=tmp_path))
    return run


def _command(folder: Path, overrides: tuple[str, ...]) -> None:
    """`qlmm finetune`, as the leader of a process group."""
    from qlmm.cli.app import main

    os.setsid()
    sys.argv = ["qlmm", "finetune", str(folder / "tiny.yaml"), *overrides]
    with (folder / "output.txt").open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        main()


def _stuck_command(folder: Path) -> None:
    """A run whose collator hangs once a checkpoint is sealed."""
    honest = Collator._batch

    def stuck(self: Collator, samples: Any) -> Any:
        if _seals(folder):
            time.sleep(600)
        return honest(self, samples)

    Collator._batch = stuck  # type: ignore[method-assign]
    _command(folder, ("training.stall_minutes=0.2", "evaluation.answers=0", "evaluation.rows=1"))


def _started(context: ForkServerContext, folder: Path, *, after: int) -> BaseProcess:
    """A run that took a step after the one it goes on from."""
    child = context.Process(target=_command, args=(folder, LONG))
    child.start()
    _until(lambda: _steps(folder) > after or not child.is_alive())
    return child


def _until(condition: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def _steps(folder: Path) -> int:
    log = folder / "run/metrics.jsonl"
    return log.read_text().count('"event": "step"') if log.exists() else 0


def _seals(folder: Path) -> list[int]:
    return sorted(int(path.parent.name.partition("-")[2]) for path in folder.glob("run/checkpoint-*/seal.json"))


def test_a_signal_to_every_process_of_a_run_never_loses_the_save(tiny: TinyRun, context: ForkServerContext) -> None:
    """As SLURM and systemd end a job; the run goes on from every save."""
    chance, folder = random.Random(7), tiny.folder
    sealed = 0
    for number in range(TRIES):
        which = chance.choice((signal.SIGTERM, signal.SIGINT))
        child = _started(context, folder, after=sealed)
        time.sleep(chance.uniform(0.0, 0.3))
        os.killpg(child.pid or 0, which)
        child.join(timeout=60)
        output = (folder / "output.txt").read_text()[-2000:]
        assert child.exitcode == 128 + which, (number, output)
        assert _seals(folder)[-1] > sealed, (number, output)
        sealed = _seals(folder)[-1]


def test_sigusr1_seals_and_the_run_goes_on(tiny: TinyRun, context: ForkServerContext) -> None:
    child = _started(context, tiny.folder, after=0)
    os.killpg(child.pid or 0, signal.SIGUSR1)
    _until(lambda: _seals(tiny.folder))
    _until(lambda: _steps(tiny.folder) > _seals(tiny.folder)[-1] + 3)
    child.kill()
    child.join()
    assert len(_seals(tiny.folder)) == 1


def test_a_step_that_hangs_ends_with_stacks_and_its_seals(tiny: TinyRun, context: ForkServerContext) -> None:
    child = context.Process(target=_stuck_command, args=(tiny.folder,))
    child.start()
    child.join(timeout=120)
    output = (tiny.folder / "output.txt").read_text()
    assert child.exitcode == 1, output[-2000:]
    assert "Timeout (0:00:12)!" in output
    assert re.search(r"File .*test_steady\.py., line \d+ in stuck", output)
    assert _seals(tiny.folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_that_no_check_foresaw_names_its_rows(
    workers: int, tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Collator._batch

    def brittle(self: Collator, samples: Any) -> Any:
        if any(sample.origin.line == 5 for sample in samples):
            raise ValueError("shape '[2, 3]' is invalid, hf_abcdefghijklmnopqrstuvwxyz")
        return honest(self, samples)

    monkeypatch.setattr(Collator, "_batch", brittle)
    with pytest.raises(RunError, match=r"no batch can be made of .*rows\.jsonl:5\b.*ValueError: shape") as caught:
        finetune(tiny.recipe(f"training.workers={workers}", "evaluation.rows=1", "training.steps=14"))
    assert caught.value.problems[0].code == "D049"
    assert "hf_abc" not in str(caught.value)
    if workers:
        assert "brittle" in str(caught.value.__cause__), "the trace came along"
        assert "hf_abc" not in str(caught.value.__cause__)


@pytest.mark.parametrize("busy", [True, False])
def test_a_killed_worker_names_the_rows_it_had(busy: bool, tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Collator._batch

    def fatal(self: Collator, samples: Any) -> Any:
        if multiprocessing.parent_process() is not None and any(sample.origin.line == 5 for sample in samples):
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(self, samples)

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and not busy:
            for child in multiprocessing.active_children():
                child.kill()
            time.sleep(1)

    if busy:
        monkeypatch.setattr(Collator, "_batch", fatal)
    with pytest.raises(RunError, match=r"data worker \d+ ended with exit code -9") as caught:
        finetune(tiny.recipe("training.workers=2", "evaluation.rows=1", "training.steps=14"), listener=listen)
    assert caught.value.problems[0].code == "D048"
    assert ("rows.jsonl:5" in str(caught.value)) == busy


SAME_LOSS = ("adapter.dropout=0", "training.batch_size=4", "training.accumulation=2", "training.steps=4")


def _losses(folder: Path) -> list[float]:
    return [event.loss for event in read_metrics(folder / "run/metrics.jsonl") if isinstance(event, StepDone)]


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a run that memory sufficed for."""
    run = TinyRun.make(tmp_path_factory.mktemp("roomy"))
    finetune(run.recipe(*SAME_LOSS))
    return _losses(run.folder)


def _with_room_for(rows: int, error: Exception, monkeypatch: pytest.MonkeyPatch, *, later: bool = False) -> None:
    """A machine on which more rows than that end in an error, after the first half of their backward pass."""
    honest = PartsTrainer.compute_loss

    def short(self: Any, model: Any, inputs: Any, *args: Any, **settings: Any) -> Any:
        if (
            len(inputs.get("rows", inputs.get("input_ids"))) > rows
            and self.model.training
            and (not later or self.state.global_step == 2)
        ):
            honest(self, model, dict(inputs), *args, **settings).backward()
            raise error
        return honest(self, model, inputs, *args, **settings)

    monkeypatch.setattr(PartsTrainer, "compute_loss", short)


FULL = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: 9 bytes."
)


@pytest.mark.parametrize(
    ("error", "later", "workers"),
    [(torch.OutOfMemoryError("CUDA out of memory."), False, 2), (MemoryError(), True, 2), (FULL, True, 0)],
)
def test_a_batch_that_does_not_fit_is_taken_in_halves_with_the_same_losses(
    error: Exception, later: bool, workers: int, tiny: TinyRun, roomy: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_room_for(1, error, monkeypatch, later=later)
    seen: list[Event] = []
    outcome = finetune(tiny.recipe(*SAME_LOSS, f"training.workers={workers}"), listener=seen.append)
    assert outcome.status == "finished"
    assert _losses(tiny.folder) == pytest.approx(roomy, rel=1e-5)
    record = json.loads((tiny.folder / "run/run.json").read_text())
    assert record["rows_at_once"] == 1
    step = 3 if later else 1
    warned = [event.message for event in seen if isinstance(event, Warned)]
    assert [f"out of memory at step {step}: {rows} of a batch's 4 rows" in " ".join(warned) for rows in (2, 1)] == [
        True
    ] * 2
    assert f"out of memory at step {step}" in (tiny.folder / "run/report.html").read_text()


@pytest.mark.parametrize("objective", ["dpo", "simpo"])
def test_pairs_that_do_not_fit_are_taken_in_halves(
    objective: str, tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.folder
    rows = [pair_row(folder, number, picture=number % 5 != 4) for number in range(16)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = (f"training.objective={objective}", f"data.sources=[{{path: {folder}/pairs.jsonl}}]", *SAME_LOSS)
    finetune(tiny.recipe(*pairs))
    expected = _losses(folder)
    (folder / "run").rename(folder / "whole")
    _with_room_for(1, MemoryError(), monkeypatch, later=True)
    assert finetune(tiny.recipe(*pairs)).status == "finished"
    assert _losses(folder) == pytest.approx(expected, rel=1e-5)
    assert json.loads((folder / "run/run.json").read_text())["rows_at_once"] == 1


def test_a_trial_of_the_longest_batch_changes_no_number(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout on: the trial draws random numbers, and gives them back."""
    finetune(tiny.recipe("training.steps=3"))
    tried = (_losses(tiny.folder), (tiny.folder / "run/adapter/adapter_model.safetensors").read_bytes())
    monkeypatch.setattr(SftTrainer, "fit_longest", lambda self, model, items: setattr(self, "_fitted", True))
    finetune(tiny.recipe("training.steps=3", f"output.dir={tmp_path}/untried"))
    (tmp_path / "run").rename(tmp_path / "tried")
    (tmp_path / "untried").rename(tmp_path / "run")
    assert (_losses(tmp_path), (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes()) == tried


def test_one_row_that_does_not_fit_ends_the_run_with_what_changes_would_save(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_room_for(0, MemoryError(), monkeypatch)
    with pytest.raises(RunError, match="out of memory at step 1 with 1 row at once") as caught:
        finetune(tiny.recipe())
    (problem,) = caught.value.problems
    assert problem.code == "G003"
    assert re.search(
        r"gradient_checkpointing=true \(about \d+ [KMG]iB\), data\.max_length=\d+ \(about", problem.help or ""
    )


def test_rows_a_pass_may_change_on_resume_while_rows_a_step_stay(tiny: TinyRun, roomy: list[float]) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Saved):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(tiny.recipe(*SAME_LOSS), listener=stop)
    with pytest.raises(RecipeError, match="R040"):
        finetune(tiny.recipe(*SAME_LOSS, "training.batch_size=2"))
    assert finetune(tiny.recipe(*SAME_LOSS, "training.batch_size=2", "training.accumulation=4")).status == "finished"
    assert _losses(tiny.folder) == pytest.approx(roomy, rel=1e-5)
