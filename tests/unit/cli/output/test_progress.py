"""A run as it goes: one bar on a terminal, plain lines in a log."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlmm.cli.output.console import out
from qlmm.cli.output.progress import Progress, line
from qlmm.core.events import Event, PairsEvaluated, Saved, Warned
from tests.run_facts import step
from tests.terminal import EVERYTHING, watched


def test_without_a_terminal_progress_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(100) as listener:
        for number in range(1, 261):
            listener(step(number))
        listener(Saved(260, "checkpoint-260"))
    said = capsys.readouterr()
    assert said.out == ""
    assert [text.split("/")[0] for text in said.err.splitlines()] == [
        "step   1",
        "step 100",
        "step 200",
        "step 260",
        "step 260: saved checkpoint-260",
    ]
    assert "loss 5.000  312 tok/s  1.2 GiB  1:01 left  lr language 2.0e-04 connector 1.0e-03" in said.err


def test_a_step_on_pairs_shows_margin_and_accuracy_within_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"rewards/margins": -12.3456, "rewards/accuracies": 1.0}
    long = replace(step(2600, 0.6931, 2600, metrics), tokens_per_s=1234.0, seconds_left=36_721.0)
    with Progress() as listener:
        listener(long)
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown == "step 2600/2600  loss 0.693  margin -12.35  acc 100 %  1,234 tok/s  10:12:01 left"
    assert len(shown) <= 80


def test_held_out_pairs_have_a_line_with_all_that_was_measured() -> None:
    measured = line(PairsEvaluated(40, 0.75, 3.5, 0.5, -0.25, 0.0125))
    assert measured == ("step 40: held-out pairs won 75.0 %, shuffled 50.0 %, margin +3.50, KL 0.0125")
    assert line(PairsEvaluated(40, 0.75, 3.5, None, None, None)).endswith("won 75.0 %, margin +3.50")


def test_a_terminal_gets_one_bar_with_lines_above_it() -> None:
    with watched() as terminal, Progress() as listener:
        for event in (step(5, total=10), Warned("something odd"), Saved(5, "checkpoint-5")):
            listener(event)
        out.warn("said by others")
    text = terminal.getvalue()
    assert "5/10" in text
    assert "━" in text
    for told in ("something odd", "step 5: saved checkpoint-5", "said by others"):
        assert text.count(told) == 1


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb")])
def test_no_bar_where_nobody_watches_it(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with watched() as terminal, Progress() as listener:
        listener(step(5, total=10))
    assert "━" not in terminal.getvalue()
    assert "step  5/10" in terminal.getvalue()


@pytest.mark.parametrize("event", EVERYTHING)
def test_every_event_has_a_line_in_words(event: Event) -> None:
    assert type(event).__name__ not in line(event)


def test_an_unknown_time_left_is_a_dash() -> None:
    assert "-:-- left" in line(replace(step(1), seconds_left=float("inf")))
