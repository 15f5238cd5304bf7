"""``--json``: one object of one shape on stdout, however a command ends, with the exit code in it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlmm import __version__, api
from qlmm.cli import app as command_line
from qlmm.core.errors import EXIT_CODES, RunError, UsageError
from qlmm.core.filenames import ADAPTER
from qlmm.proof.records import Answer, Comparison, Promise
from tests.run_facts import PROOF
from tests.runs import RECIPE

KEYS = ["qlmm", "command", "exit_code", "problems", "result"]
# What a shell would act on, and what it would lose.
HOSTILE = 'my $(touch planted) "recipe"'


def ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int | str | None, str, str]:
    """Exit code, stdout and stderr of one command."""
    monkeypatch.setattr(sys, "argv", ["qlmm", *words])
    try:
        command_line.main()
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr()
    return code or 0, said.out, said.err


def told(text: str, code: object, command: str) -> Mapping[str, Any]:
    """The object, once its shape is found right."""
    found: dict[str, Any] = json.loads(text)
    assert list(found) == KEYS
    assert (found["qlmm"], found["command"], found["exit_code"]) == (__version__, command, code)
    return found


@pytest.mark.parametrize(
    ("error", "code", "problems"),
    [
        (UsageError.one("T999", "no such thing", help="try another"), 2, ["T999"]),
        (RunError.one("T999", "it went wrong"), 1, ["T999"]),
        (KeyboardInterrupt(), 130, []),
        (RuntimeError("odd"), 101, []),
    ],
)
def test_however_a_command_ends_there_is_one_object(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    error: BaseException,
    code: int,
    problems: list[str],
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setenv("QLMM_HOME", str(tmp_path))
    monkeypatch.setattr("qlmm.recipe.library.shipped", fail)
    ended, printed, _ = ends(monkeypatch, capsys, "recipe", "list", "--json")
    found = told(printed, code, "recipe list")
    assert ended == code
    assert code in EXIT_CODES
    assert [one["code"] for one in found["problems"]] == problems
    assert found["result"] is None
    # The next command in this process did not ask for JSON.
    assert ends(monkeypatch, capsys, "recipe", "list")[1] == ""


@pytest.mark.parametrize(
    "words", [("recipe", "list"), ("recipe", "check", "owl_lora"), ("zoo", "list"), ("explain", "D005"), ("doctor",)]
)
def test_light_commands_give_their_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    code, printed, _ = ends(monkeypatch, capsys, *words, "--json")
    command = " ".join(words[:2]) if words[0] in {"recipe", "zoo"} else words[0]
    found = told(printed, 0, command)
    assert (code, found["problems"]) == (0, [])
    assert found["result"]


def test_bad_rows_are_problems_with_their_places(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    good = {"conversations": [{"from": "human", "value": "one ?"}, {"from": "gpt", "value": "two"}]}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(good) + "\n" + json.dumps({**good, "image": "gone.png"}) + "\n{\n")
    code, printed, _ = ends(monkeypatch, capsys, "data", "check", str(rows), "--json")
    found = told(printed, 2, "data check")
    assert code == 2
    assert {one["code"] for one in found["problems"]} == {"D001", "D005"}
    assert [one["where"]["line"] for one in found["problems"] if one["where"]] == [3]
    assert (found["result"]["sources"][0]["kept"], found["result"]["sources"][0]["bad"]) == (1, 2)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"{HOSTILE}.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


def outcome(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> None:
    """Make the next run end so."""
    made = api.Outcome(**{"status": "finished", "run_dir": Path(HOSTILE), "adapter": None, "proof": None} | facts)
    monkeypatch.setattr("qlmm.api.finetune", lambda loaded, planned, listener: made)


@pytest.mark.parametrize(("signal", "code"), [(15, 143), (2, 130)])
def test_a_stopped_run_names_the_command_that_continues_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path, signal: int, code: int
) -> None:
    outcome(monkeypatch, status="stopped", signal=signal)
    words = (recipe.name, "output.dir=a b", "training.steps=3")
    ended, _, said = ends(monkeypatch, capsys, "finetune", *words)
    assert ended == code
    (line,) = (line for line in said.splitlines() if "continue with: " in line)
    assert shlex.split(line.partition("continue with: ")[2]) == ["qlmm", "finetune", *words]
    ended, printed, _ = ends(monkeypatch, capsys, "finetune", *words, "--json")
    assert told(printed, code, "finetune")["result"]["status"] == "stopped"
    assert ended == code


def test_the_next_commands_can_be_pasted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    question = "What is\n$(touch planted) `this`?"
    adapter = Path(HOSTILE) / ADAPTER
    outcome(monkeypatch, adapter=adapter, proof=PROOF, answers=(Answer(b"", question, "a", "b", "c"),))
    code, printed, _ = ends(monkeypatch, capsys, "finetune", recipe.name)
    assert code == 0
    commands = [shlex.split(line) for line in printed.partition("next:\n")[2].splitlines()]
    picture = f"{HOSTILE}/held-out/1.png"
    assert commands == [
        ["qlmm", "ask", str(adapter), "--image", picture, "What is $(touch planted) `this`?"],
        ["qlmm", "chat", str(adapter)],
        ["qlmm", "data", "show", recipe.name, "--row", "1"],
    ]


def test_a_run_that_made_the_model_worse_ends_well_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    lost = Comparison("before training", "worse", "50.0 % of pairs won, margin -3.000; before 100.0 %, margin +1.250")
    outcome(monkeypatch, adapter=Path("adapter"), proof=replace(PROOF, comparisons=(lost,)))
    code, printed, said = ends(monkeypatch, capsys, "finetune", recipe.name)
    assert code == 0
    assert "useful  NO   worse than before training" in printed
    assert "warning: training made the model worse on held-out rows: worse than before training" in said
    _, printed, said = ends(monkeypatch, capsys, "finetune", recipe.name, "--json")
    verdicts = told(printed, 0, "finetune")["result"]["verdicts"]
    assert (verdicts["sound"], verdicts["useful"], verdicts["worse"]) == (True, False, True)
    assert "warning: training made the model worse" in said


def test_a_broken_promise_is_a_problem_beside_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    broken = replace(PROOF, promises=(Promise("it moved", False, "0 of 58"),))
    outcome(monkeypatch, status="unproven", adapter=Path("adapter-UNPROVEN"), proof=broken)
    code, printed, said = ends(monkeypatch, capsys, "finetune", recipe.name, "--json")
    found = told(printed, 1, "finetune")
    assert code == 1
    assert [one["code"] for one in found["problems"]] == ["P001"]
    assert found["result"]["verdicts"]["sound"] is False
    assert "promise broken: it moved" in said


def test_the_codes_are_in_the_help_and_on_the_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = ends(monkeypatch, capsys, "--help")[1]
    page = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
    for code, words in EXIT_CODES.items():
        assert f" {code} " in shown.partition("Exit codes:")[2].replace("\n", " ")
        assert f"* `{code}`: {words}" in page.read_text("utf-8")
