"""The trainer's hooks as events: every figure of a step, seals, evaluations, and an orderly end on a signal."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from qlmm.core.events import Listener, Saved, StepDone
from qlmm.core.signals import stop_signals
from qlmm.recipe.schema import TrainingSection
from qlmm.training import monitor as module
from qlmm.training.monitor import Monitor, peak_memory_bytes

ARGS: Any = object.__new__(TrainingArguments)


class Sealing:
    """Stands for the run directory."""

    def __init__(self, told: list[Any]) -> None:
        self.told = told

    def seal_checkpoint(self, step: int, keep: int, listener: Listener) -> Path:
        del listener
        self.told.append(("sealed", step, keep))
        return Path(f"runs/x/checkpoint-{step}")


class Watched:
    """A monitor with a clock that the test turns, and what it told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[Any] = []
        self.measured: list[int] = []
        self.seconds = 100.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.seconds))
        sealing: Any = Sealing(self.told)
        training = TrainingSection(keep=2)
        self.monitor = Monitor(sealing, self.told.append, training, every=5, evaluate=self.measured.append)
        self.monitor.grad_norms = lambda: {"language": 1.5, "connector": 2.5}
        weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
        parts = (("language", 2e-4), ("language", 2e-4), ("connector", 2e-5))
        groups = [{"params": [one], "lr": rate, "part": part} for one, (part, rate) in zip(weights, parts, strict=True)]
        self.optimizer = torch.optim.AdamW(groups)
        self.control = TrainerControl()

    def state(self, step: int) -> TrainerState:
        return TrainerState(global_step=step, max_steps=10)

    def begin(self, step: int = 0) -> None:
        self.monitor.on_train_begin(ARGS, self.state(step), self.control)

    def log(self, step: int, **logs: float) -> None:
        self.monitor.on_pre_optimizer_step(ARGS, self.state(step), self.control, optimizer=self.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] /= 2  # the scheduler has set the next step's rates by the time a step is logged
        self.monitor.on_log(ARGS, self.state(step), self.control, logs=logs, optimizer=self.optimizer)

    def end(self, step: int) -> None:
        self.monitor.on_step_end(ARGS, self.state(step), self.control)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    yield Watched(monkeypatch)
    faulthandler.cancel_dump_traceback_later()


def test_every_pass_has_the_whole_time(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    armed: list[float | None] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **_: armed.append(seconds))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: armed.append(None))
    watched.begin()
    watched.monitor.on_substep_end(ARGS, watched.state(0), watched.control)
    watched.end(1)
    watched.end(5)
    assert armed == [7200.0] * 5, "an evaluation has a time of its own"
    watched.monitor.on_train_end(ARGS, watched.state(5), watched.control)
    assert armed[-1] is None


def test_a_step_is_told_with_everything_that_was_measured(watched: Watched) -> None:
    watched.begin()
    watched.seconds += 4
    watched.log(2, loss=3.25, num_tokens=800.0)
    (event,) = watched.told
    assert isinstance(event, StepDone)
    assert (event.step, event.total, event.loss) == (2, 10, 3.25)
    assert event.rates == {"language": 2e-4, "connector": 2e-5}
    assert event.grad_norms == {"language": 1.5, "connector": 2.5}
    assert event.tokens_per_s == pytest.approx(200.0)
    assert event.seconds_left == pytest.approx(16.0)
    assert event.memory_bytes > 1 << 20


def test_speed_is_that_since_the_last_line_and_time_left_that_of_the_whole_run(watched: Watched) -> None:
    watched.begin()
    watched.seconds += 8
    watched.log(2, loss=3.0, num_tokens=800.0)
    watched.seconds += 2
    watched.log(4, loss=2.0, num_tokens=1400.0)
    event = watched.told[-1]
    assert event.tokens_per_s == pytest.approx(300.0)
    assert event.seconds_left == pytest.approx(6 * 10 / 4)


def test_a_continued_run_counts_its_own_time_only(watched: Watched) -> None:
    watched.begin(step=6)
    watched.seconds += 6
    watched.log(8, loss=3.0, num_tokens=10.0)
    assert watched.told[-1].seconds_left == pytest.approx(6.0)


def test_a_continued_run_saves_and_logs_as_its_recipe_asks_today(watched: Watched) -> None:
    state = TrainerState(global_step=6, max_steps=10, save_steps=2, logging_steps=1)
    args: Any = object.__new__(TrainingArguments)
    args.save_steps, args.logging_steps = 5, 3
    watched.monitor.on_train_begin(args, state, watched.control)
    assert (state.save_steps, state.logging_steps) == (5, 3)


def test_a_loss_that_is_not_a_number_is_told_as_it_is(watched: Watched) -> None:
    watched.begin()
    watched.log(1, loss=float("nan"), num_tokens=1.0)
    assert str(watched.told[-1].loss) == "nan"


def test_the_summary_at_the_end_is_no_step(watched: Watched) -> None:
    watched.begin()
    watched.log(10, train_runtime=3.0, train_loss=2.0)
    assert watched.told == []


def test_the_last_step_is_always_logged(watched: Watched) -> None:
    watched.end(9)
    assert not watched.control.should_log
    watched.end(10)
    assert watched.control.should_log


def test_a_save_is_sealed_before_it_is_told(watched: Watched) -> None:
    watched.monitor.on_save(ARGS, watched.state(4), watched.control)
    assert watched.told == [("sealed", 4, 2), Saved(4, "checkpoint-4")]


def test_held_out_rows_are_measured_where_it_is_due_and_not_at_the_end(watched: Watched) -> None:
    for step in range(1, 11):
        watched.end(step)
    assert watched.measured == [5]


def test_what_the_objective_measured_is_told_and_nothing_of_the_schedule(watched: Watched) -> None:
    watched.begin()
    rewards = {"rewards/chosen": 0.5, "rewards/margins": float("inf"), "logps/rejected": -3.0, "kl": 0.25}
    watched.log(1, loss=0.5, learning_rate=1e-4, epoch=0.5, num_tokens=8.0, **{"logits/chosen": 1.0}, **rewards)
    assert watched.told[-1].metrics == rewards


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_then_saves_and_stops(which: signal.Signals, watched: Watched) -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    with stop_signals() as watched.monitor.stop:
        watched.end(1)
        assert not watched.control.should_training_stop
        os.kill(os.getpid(), which)
        assert watched.monitor.stop.by == which
        watched.end(2)
        assert watched.control.should_save
        assert watched.control.should_training_stop
    assert {one: signal.getsignal(one) for one in before} == before


def test_a_second_signal_leaves_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_signals():
        _interrupt_twice()
    assert signal.getsignal(signal.SIGINT) == before


def _interrupt_twice() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_failure_puts_the_handlers_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="loss"), stop_signals():
        raise ValueError("loss")
    assert signal.getsignal(signal.SIGTERM) == before


def test_memory_is_counted_in_bytes() -> None:
    assert 10 << 20 < peak_memory_bytes() < 1 << 40
