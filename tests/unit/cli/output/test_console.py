"""The console: results on stdout, talk on stderr, nothing that a log, a pipe or an old terminal cannot take."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qlmm.cli.output.console import Out, out
from qlmm.cli.output.progress import Progress
from qlmm.cli.output.screens import plan_screen
from qlmm.core.errors import Problem, RecipeError, Where
from qlmm.core.secrets import visible
from tests.run_facts import PLAN, step
from tests.terminal import watched

ESCAPE = "\x1b"
UNKNOWN_KEY = Problem(
    "R012",
    "unknown key `rank`",
    Where("recipes/owl_lora.yaml", 14, 5, "    rank: 8", 4),
    "did you mean `r`?  keys: r, alpha, dropout, targets",
)
ERROR = RecipeError([UNKNOWN_KEY])


def test_results_go_to_stdout_and_talk_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    out.print("result")
    out.json({"a": 1})
    out.no_result(ERROR, 2)
    out.note("loading")
    out.warn("odd")
    out.error(ERROR)
    said = capsys.readouterr()
    first, _, printed = said.out.partition("\n")
    assert (first, json.loads(printed)["result"]) == ("result", {"a": 1})
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
    out.screen(plan_screen(replace(PLAN, warnings=(f"token {secret}",))))
    said = capsys.readouterr()
    assert secret not in said.out + said.err


def test_data_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b]0;title\x07\x1b[2Jb\rc\x9b31m\td"
    out.print(hostile)
    out.note(hostile)
    out.error(RecipeError([replace(UNKNOWN_KEY, message=hostile)]))
    out.screen(plan_screen(replace(PLAN, base=hostile)))
    said = capsys.readouterr()
    assert not set("\x1b\x07\r\x9b") & set(said.out + said.err)
    assert visible("a\tb\r\nc\x1b") == "a\tb\nc\\x1b"


def test_an_error_ends_an_open_bar() -> None:
    with watched() as terminal:
        Progress()(step(5, total=10))
        out.error(ERROR)
    assert terminal.getvalue().rstrip().endswith("dropout, targets")
    assert "5/10" in terminal.getvalue()


SAY_ALL = """
from pathlib import Path
from qlmm.cli.output.console import out
from qlmm.cli.output.progress import Progress
from qlmm.cli.output.screens import done_screen, plan_screen, proof_screen
from tests.run_facts import PLAN, PROOF
from tests.terminal import EVERYTHING
from tests.unit.cli.output.test_console import ERROR
out.screen(plan_screen(PLAN)); out.screen(proof_screen(PROOF))
out.screen(done_screen(Path("é"), ["qlmm chat é"]), soft_wrap=True); out.error(ERROR)
out.print("café ✓ 🙈 日本 \\udce9 → …"); out.note("café ✓ 🙈 \\udce9"); out.warn("…"); out.json({"é": "🙈"})
with Progress() as listener:
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
