"""A tracker that raises, at whatever event, is told of once and let go; the others and the run go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qlmm.training import trackers as module
from qlmm.training.trackers import Trackers

ARGS: Any = object.__new__(TrainingArguments)
EVENTS = [name for name in dir(TrainerCallback) if name.startswith("on_")]
KEY = "hf_" + "aB3dE5gH7j" * 3


class OwnError(Exception):
    """What a library raises that has an error of its own."""

    def __str__(self) -> str:
        raise ValueError("not even its text")


class Tracker(TrainerCallback):
    """Keeps what it is told, and raises at one event."""

    def __init__(self, heard: list[str], at: str = "", error: BaseException | None = None) -> None:
        self.heard, self.at, self.error = heard, at, error

    def hear(self, event: str) -> None:
        self.heard.append(event)
        if event == self.at and self.error is not None:
            raise self.error


def _heard(event: str) -> Callable[..., None]:
    return lambda self, *_, **__: self.hear(event)


for _event in EVENTS:
    setattr(Tracker, _event, _heard(_event))


class Bench:
    """Two trackers in one callback, the first of which raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: str, error: BaseException) -> None:
        self.bad: list[str] = []
        self.good: list[str] = []
        self.lost: list[str] = []
        made: dict[str, Callable[[], Tracker]] = {
            "wandb": lambda: Tracker(self.bad, at, error),
            "trackio": lambda: Tracker(self.good),
        }
        monkeypatch.setattr(module, "tracker_kind", made.__getitem__)
        self.trackers = Trackers(("wandb", "trackio"), self.lost.append)

    def tell(self, events: Iterator[str] | list[str]) -> None:
        for event in events:
            hook: Callable[..., object] = getattr(self.trackers, event)
            assert hook(ARGS, TrainerState(global_step=3), TrainerControl(), logs={"loss": 1.0}) is None


@pytest.mark.parametrize("error", [OSError("no route"), OwnError(), StopIteration()], ids=repr)
@pytest.mark.parametrize("at", EVENTS)
def test_a_tracker_that_raises_at_an_event_is_let_go_and_told_of_once(
    monkeypatch: pytest.MonkeyPatch, at: str, error: Exception
) -> None:
    bench = Bench(monkeypatch, at, error)
    bench.tell([*EVENTS, *EVENTS])
    assert bench.bad == EVENTS[: EVENTS.index(at) + 1]
    assert bench.good == [*EVENTS, *EVENTS]
    (said,) = bench.lost
    assert said.startswith("tracker wandb gets nothing after step 3: ")
    assert type(error).__name__ in said


def test_a_tracker_that_cannot_be_made_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Callable[[], TrainerCallback]:
        raise RuntimeError(f"{name} is not what it was")

    monkeypatch.setattr(module, "tracker_kind", broken)
    lost: list[str] = []
    Trackers(("mlflow",), lost.append).on_init_end(ARGS, TrainerState(), TrainerControl())
    assert lost == ["tracker mlflow gets nothing after step 0: RuntimeError: mlflow is not what it was"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=lambda one: type(one).__name__)
def test_an_end_that_was_asked_for_passes(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    bench = Bench(monkeypatch, "on_log", error)
    with pytest.raises(type(error)):
        bench.tell(["on_log"])
    assert bench.lost == []


def test_the_reason_is_one_short_line_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    # Cut at any length, no part of the key may be left.
    for length in range(120, 220):
        bench = Bench(monkeypatch, "on_log", ValueError("x" * length + f" {KEY}\nsecond line"))
        bench.tell(["on_log"])
        (said,) = bench.lost
        assert "\n" not in said
        assert len(said) < 300
        assert KEY[:8] not in said
