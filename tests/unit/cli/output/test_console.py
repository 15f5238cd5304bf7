"""The console: results on stdout, talk on stderr, nothing that a log, a pipe or an old terminal cannot take."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qlmm.cli.output.console import Out, out, visible
from qlmm.cli.output.progress import line
from qlmm.core.errors import Problem, RecipeError, Where
from qlmm.core.events import Answered, Evaluated, Event, Finished, PairsEvaluated, Resumed, Saved, Warned
from qlmm.proof.records import PairProof, Promise
from tests.run_facts import PAIRS_PROOF, PLAN, PROOF, step

ESCAPE = "\x1b"
UNKNOWN_KEY = Problem(
    "R012",
    "unknown key `rank`",
    Where("recipes/owl_lora.yaml", 14, 5, "    rank: 8", 4),
    "did you mean `r`?  keys: r, alpha, dropout, targets",
)
ERROR = RecipeError([UNKNOWN_KEY])
EVERYTHING: list[Event] = [
    Resumed(1, "checkpoint-1"),
    Answered("before", 8),
    step(2),
    Evaluated(2, {"right": 4.0, "shuffled": 4.5, "none": 5.0}),
    PairsEvaluated(2, 0.5, 1.0, None, None, None),
    Saved(2, "checkpoint-2"),
    Warned("something odd"),
    Finished(2, 75.0),
]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "CI", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")


@contextlib.contextmanager
def watched() -> Iterator[Terminal]:
    """Stderr as somebody's terminal; put in place within the test, because pytest swaps streams between phases."""
    with contextlib.redirect_stderr(Terminal()) as stream:
        yield stream
        out.close()


def test_results_go_to_stdout_and_talk_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    out.print("result")
    out.json({"a": 1})
    out.talk("loading")
    out.warn("odd")
    out.error(ERROR)
    said = capsys.readouterr()
    assert said.out == 'result\n{\n  "a": 1\n}\n'
    assert said.err.splitlines()[:2] == ["loading", "warning: odd"]


def test_an_error_reads_as_compilers_print_it(capsys: pytest.CaptureFixture[str]) -> None:
    out.error(ERROR)
    assert capsys.readouterr().err == str(ERROR) + "\n"
    assert str(ERROR).splitlines() == [
        "error[R012]: unknown key `rank`",
        "  --> recipes/owl_lora.yaml:14:5",
        "   |",
        "14 |     rank: 8",
        "   |     ^^^^",
        "help: did you mean `r`?  keys: r, alpha, dropout, targets",
    ]


def test_long_lines_of_an_error_are_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    long = Problem("D001", "word " * 60, Where("a.jsonl", 1, 150, "x" * 200))
    out.error(RecipeError([long]))
    assert capsys.readouterr().err == long.render() + "\n"


def test_an_error_has_colour_on_a_terminal_and_the_same_words() -> None:
    with watched() as terminal:
        out.error(ERROR)
    assert ESCAPE in terminal.getvalue()
    assert re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()) == str(ERROR) + "\n"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colour_can_be_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("FORCE_COLOR", "1" if name == "NO_COLOR" else "")
    with watched() as terminal:
        out.error(ERROR)
        out.warn("odd")
    assert ESCAPE not in terminal.getvalue()


def test_colour_can_be_forced(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out.warn("odd")
    assert ESCAPE in capsys.readouterr().err


def test_secrets_are_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    secret = "hf_" + "a1B2" * 8
    out.error(RecipeError([replace(UNKNOWN_KEY, message=f"`{secret}` is no number")]))
    out.warn(f"token {secret}")
    out.plan(replace(PLAN, warnings=(f"token {secret}",)))
    said = capsys.readouterr()
    assert secret not in said.out + said.err


def test_data_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b]0;title\x07\x1b[2Jb\rc\x9b31m\td"
    out.print(hostile)
    out.talk(hostile)
    out.error(RecipeError([replace(UNKNOWN_KEY, message=hostile)]))
    out.plan(replace(PLAN, base=hostile))
    said = capsys.readouterr()
    assert not set("\x1b\x07\r\x9b") & set(said.out + said.err)
    assert visible("a\tb\r\nc\x1b") == "a\tb\nc\\x1b"


def test_the_plan_fits_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    out.plan(PLAN)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)


def test_the_plan_says_everything_asked_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    out.plan(PLAN)
    text = " ".join(capsys.readouterr().out.split())
    for fact in (
        PLAN.base,
        "connector 58 5,123,840 fp32 58 5,123,840 100.0 %",
        "language 692 138,957,120 nf4 420 4,442,240 3.2 %",
        "q_proj (30)",
        "2,931 kept, 41 dropped (38 too long, 3 no answer), 159 held out",
        "median 78 (of which 65 visual), 95 % have up to 92, longest 121",
        "260 of 16 rows each = 1.4 epochs",
        "1.3 GiB estimated: weights 300 MiB",
        "fp32 on cpu (2 cores)",
        "runs/quickstart (about 210 MiB on disk)",
        "warning: bf16 is emulated on this processor",
    ):
        assert fact in text


def test_the_proof_shows_movement_pictures_and_promises(capsys: pytest.CaptureFixture[str]) -> None:
    out.proof(PROOF)
    text = " ".join(capsys.readouterr().out.split())
    assert "connector 58 of 58 5,123,840 100.0 % 1.2e-03 3.41 -" in text
    assert "language 420 of 420 4,442,240 >99.9 % 4.1e-04 1.27 272 same" in text
    assert "gained by the right picture over a shuffled one -0.070 +0.749" in text
    assert "✓ every part asked to train moved" in text
    assert "run proof: all 2 promises kept" in text


def test_the_proof_of_a_preference_run_shows_which_pairs_were_won(capsys: pytest.CaptureFixture[str]) -> None:
    out.proof(PAIRS_PROOF)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "held-out pairs, chosen against rejected (64 pairs) before after won 51.6 % 84.4 %" in text
    assert "won with shuffled pictures (60 pairs) 50.0 % 55.0 %" in text
    assert "margin with shuffled pictures, nats +0.180 -1.250" in text
    assert "distance from the reference, nats per token - 0.0421" in text


def test_what_was_not_measured_on_pairs_has_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    bare = PairProof(8, 0.5, 0.25, 0, None, None, None)
    out.proof(replace(PAIRS_PROOF, pairs_before=None, pairs_after=bare))
    text = " ".join(capsys.readouterr().out.split())
    assert "won - 50.0 % margin, nats - +0.250" in text
    assert "reference" not in text
    out.proof(PROOF)
    assert "pairs" not in capsys.readouterr().out


def test_a_broken_promise_is_unmistakable(capsys: pytest.CaptureFixture[str]) -> None:
    stuck = replace(PROOF.parts[1], moved_tensors=0, moved_share=0.0)
    changed = replace(PROOF.parts[3], frozen_identical=False)
    out.proof(replace(PROOF, parts=(stuck, changed), promises=(Promise("it moved", False, "0 of 58"),), before=None))
    text = " ".join(capsys.readouterr().out.split())
    assert "✗ it moved 0 of 58" in text
    assert "0 of 58 5,123,840 0.0 %" in text
    assert "CHANGED" in text
    assert "run proof: 0 of 1 promises kept" in text


def test_done_names_what_is_there_and_what_comes_next(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "report.html").touch()
    command = f'qlmm ask {tmp_path}/adapter --image {"x" * 80}.png "What is this?"'
    out.done(tmp_path, [command])
    lines = capsys.readouterr().out.splitlines()
    assert f"  {command}" in lines
    assert any(line.startswith("report") for line in lines)
    assert not any(line.startswith("curve") for line in lines)


def test_without_a_terminal_progress_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with out.progress(260, log_every=100) as listener:
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
    with out.progress(2600) as listener:
        listener(long)
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown == "step 2600/2600  loss 0.693  margin -12.35  acc 100 %  1,234 tok/s  10:12:01 left"
    assert len(shown) <= 80


def test_held_out_pairs_have_a_line_with_all_that_was_measured() -> None:
    measured = line(PairsEvaluated(40, 0.75, 3.5, 0.5, -0.25, 0.0125))
    assert measured == ("step 40: held-out pairs won 75.0 %, shuffled 50.0 %, margin +3.50, KL 0.0125")
    assert line(PairsEvaluated(40, 0.75, 3.5, None, None, None)).endswith("won 75.0 %, margin +3.50")


def test_a_terminal_gets_one_bar_with_lines_above_it() -> None:
    with watched() as terminal, out.progress(10) as listener:
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
    with watched() as terminal, out.progress(10) as listener:
        listener(step(5, total=10))
    assert "━" not in terminal.getvalue()
    assert "step  5/10" in terminal.getvalue()


def test_an_error_ends_an_open_bar() -> None:
    with watched() as terminal:
        out.progress(10)(step(5, total=10))
        out.error(ERROR)
    assert terminal.getvalue().rstrip().endswith("dropout, targets")
    assert "5/10" in terminal.getvalue()


@pytest.mark.parametrize("event", EVERYTHING)
def test_every_event_has_a_line_in_words(event: Event) -> None:
    assert type(event).__name__ not in line(event)


def test_an_unknown_time_left_is_a_dash() -> None:
    assert "-:-- left" in line(replace(step(1), seconds_left=float("inf")))


@pytest.mark.parametrize("columns", ["0", "20", "80", "400"])
def test_any_width_will_do(columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    out.plan(PLAN)
    out.proof(PROOF)
    assert "connector" in capsys.readouterr().out


SAY_ALL = """
from pathlib import Path
from qlmm.cli.output.console import out
from tests.run_facts import PLAN, PROOF
from tests.unit.cli.output.test_console import ERROR, EVERYTHING
out.plan(PLAN); out.proof(PROOF); out.done(Path("é"), ["qlmm chat é"]); out.error(ERROR)
out.print("café ✓ 🙈 日本 \\udce9 → …"); out.talk("café ✓ 🙈 \\udce9"); out.warn("…"); out.json({"é": "🙈"})
with out.progress(2) as listener:
    for event in EVERYTHING: listener(event)
"""


@pytest.mark.parametrize(
    "changes",
    [
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict", "FORCE_COLOR": "1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "utf-8"},
    ],
)
def test_nothing_is_unprintable(changes: dict[str, str], tmp_path: Path) -> None:
    root = Path(__file__).parents[4]
    script = tmp_path / "say_all.py"
    script.write_text(SAY_ALL, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(root), **changes}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    expected = "café ✓ 🙈 日本 ? → …" if "utf-8" in changes.values() else "caf? + ? ?? ? -> ..."
    assert expected in done.stdout.decode("utf-8")


def test_importing_the_console_costs_no_torch_and_no_pydantic() -> None:
    code = "import sys, qlmm.cli.output.console; print([m for m in ('torch', 'pydantic', 'rich') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_lines_are_read_until_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo"))
    reader = Out()
    assert [reader.read("> ") for _ in range(4)] == ["one", "", "two", None]
