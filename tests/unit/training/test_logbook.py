"""metrics.jsonl: valid JSON at every instant, the true loss even when it is none, one curve however often resumed."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest

from qlmm.core import events
from qlmm.core.errors import RunError
from qlmm.core.events import (
    Answered,
    Evaluated,
    Event,
    Finished,
    PairsEvaluated,
    Resumed,
    RowLeftOut,
    Saved,
    StepDone,
    StepSkipped,
    Warned,
)
from qlmm.training import logbook as module
from qlmm.training.logbook import open_logbook, read_metrics
from tests.run_facts import pair_metrics, pair_step, step

EVENTS: list[Event] = [
    Answered("before", 8),
    Evaluated(0, {"right": 8.0, "shuffled": 8.1}),
    PairsEvaluated(0, 0.5, -1.5, None, None, None),
    pair_step(1),
    step(2),
    PairsEvaluated(2, 0.75, 2.5, 0.5, 0.25, 1e-3),
    Saved(2, "checkpoint-2"),
    Warned("ünüsual 🙈"),
    step(3),
    StepSkipped(4, "loss is nan at step 4"),
    RowLeftOut(4, "rows.jsonl", 5, "row rows.jsonl:5: picture 5.png: no such file"),
    Finished(4, 1.5),
]


def written(path: Path, happened: list[Event], start: int = 0) -> bytes:
    with open_logbook(path, start=start) as write:
        for event in happened:
            write(event)
    return path.read_bytes()


def test_events_come_back_equal(tmp_path: Path) -> None:
    written(tmp_path / "metrics.jsonl", EVENTS)
    assert read_metrics(tmp_path / "metrics.jsonl") == EVENTS


def test_every_kind_of_event_has_a_name() -> None:
    kinds = {kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)}
    assert set(module.NAMES) == kinds - {Event}


def test_a_file_cut_at_any_byte_gives_every_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = written(path, EVENTS)
    ends = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        # An object is complete with its closing brace, whether or not its line feed made it to the disk.
        assert read_metrics(path) == EVENTS[: sum(end <= length for end in ends)]


def test_a_file_cut_at_any_byte_can_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = written(path, EVENTS)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        written(path, [step(9)], start=2)
        assert all(json.loads(line) for line in path.read_text().splitlines())
        assert read_metrics(path)[-1] == step(9)


def test_resuming_drops_what_is_about_to_be_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, EVENTS)
    written(path, [Resumed(2, "checkpoint-2"), step(3, 4.5)], start=2)
    found = read_metrics(path)
    assert [event.step for event in found if isinstance(event, StepDone)] == [1, 2, 3]
    assert found == [*EVENTS[:8], Resumed(2, "checkpoint-2"), step(3, 4.5)]


def test_held_out_pairs_that_are_measured_again_are_dropped_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, pair_metrics(60))
    written(path, [], start=30)
    assert [event.step for event in read_metrics(path) if isinstance(event, PairsEvaluated)] == [0, 20]


def test_rewards_that_are_not_finite_come_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, [step(1, metrics={"rewards/margins": float("inf"), "logps/chosen": float("-inf")})])
    (event,) = read_metrics(path)
    assert isinstance(event, StepDone)
    assert event.metrics == {"rewards/margins": float("inf"), "logps/chosen": float("-inf")}


def test_starting_over_starts_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, EVENTS)
    assert written(path, []) == b""


def test_numbers_that_are_not_finite_are_spelt_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, [step(1, float("nan")), step(2, float("inf")), step(3, float("-inf"))])

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is no JSON")

    raw = [json.loads(line, parse_constant=refuse)["loss"] for line in path.read_text().splitlines()]
    assert raw == ["nan", "inf", "-inf"]
    assert [str(event.loss) for event in read_metrics(path) if isinstance(event, StepDone)] == raw


def test_a_line_is_on_the_disk_when_its_checkpoint_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(module.os, "fsync", synced.append)
    with open_logbook(tmp_path / "metrics.jsonl", start=0) as logbook:
        synced.clear()
        logbook(step(1))
        assert not synced
        assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"}\n")
        logbook(Saved(1, "checkpoint-1"))
        assert len(synced) == 1


@pytest.mark.parametrize("line", ["{}", "[1]", "nonsense", '{"event": "step", "step": 1}', '{"event": "no such"}'])
def test_a_foreign_line_is_refused_with_its_place(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = written(path, EVENTS)
    path.write_bytes(line.encode() + b"\n" + whole)
    with pytest.raises(RunError) as caught:
        read_metrics(path)
    (problem,) = caught.value.problems
    assert problem.code == "L001"
    assert problem.where is not None
    assert problem.where.line == 1


def test_a_line_that_the_disk_takes_in_part_is_taken_back(tmp_path: Path) -> None:
    """A limit on the file's size is a disk that is full in the middle of a line."""
    path, before = tmp_path / "metrics.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with open_logbook(path, start=0) as write:
            write(step(1))
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, before[1]))
            with pytest.raises(OSError, match="No space left"):
                write(step(2))
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            write(step(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert read_metrics(path) == [step(1), step(3)]


@pytest.mark.parametrize(
    "what", [StepSkipped(2, "loss is nan at step 2"), RowLeftOut(2, "rows.jsonl", 5, "row rows.jsonl:5: no such file")]
)
def test_what_was_skipped_after_the_seal_is_forgotten(what: Event, tmp_path: Path) -> None:
    happened: list[Event] = [step(1), Saved(1, "checkpoint-1"), what, step(3)]
    written(tmp_path / "metrics.jsonl", happened)
    assert len(written(tmp_path / "metrics.jsonl", [], start=1).splitlines()) == 2


@pytest.mark.parametrize("start", [0, 2])
def test_a_link_in_the_way_of_the_log_is_not_followed(tmp_path: Path, start: int) -> None:
    victim, log = tmp_path / "victim", tmp_path / "metrics.jsonl"
    victim.write_bytes(b"")
    log.symlink_to(victim)
    with open_logbook(log, start=start) as write:
        write(step(3))
    assert victim.read_bytes() == b""
    assert not log.is_symlink()
