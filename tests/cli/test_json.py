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
from qlmm.artifacts.hub.transfer import Pulled
from qlmm.cli import app as command_line
from qlmm.core.errors import EXIT_CODES, RunError, UsageError
from qlmm.core.filenames import ADAPTER
from qlmm.proof.records import Answer, Comparison, Promise
from tests.commands import commands
from tests.run_facts import PROOF
from tests.runs import RECIPE, TinyRun, pair_row, picture_row

KEYS = ["qlmm", "command", "exit_code", "problems", "result"]
NO_JSON = {("chat",): "a conversation, whose answers are all it prints"}
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
    "words",
    [
        ("recipe", "list"),
        ("recipe", "check", "owl_lora"),
        ("recipe", "show", "owl_lora"),
        ("recipe", "explain"),
        ("recipe", "explain", "training.steps"),
        ("recipe", "explain", "owl_lora", "training.steps=3"),
        ("recipe", "new", "mine"),
        ("zoo", "list"),
        ("explain", "D005"),
        ("doctor",),
    ],
)
def test_light_commands_give_their_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, _ = ends(monkeypatch, capsys, *words, "--json")
    command = " ".join(words[:2]) if words[0] in {"recipe", "zoo"} else words[0]
    found = told(printed, 0, command)
    assert (code, found["problems"]) == (0, [])
    assert found["result"]


def test_keys_are_taken_out_and_a_commit_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    key, commit = "hf_" + "aB3dE5gH7j" * 3, "0123456789abcdef" * 2 + "01234567"
    pulled = Pulled(tmp_path / key, "me/x", commit, files=3, proven=True)
    monkeypatch.setattr("qlmm.artifacts.hub.transfer.pull", lambda *_, **__: pulled)
    code, printed, _ = ends(monkeypatch, capsys, "pull", "me/x", "--json")
    result = told(printed, code, "pull")["result"]
    assert (result["commit"], Path(result["folder"]).name) == (commit, "<redacted>")


def test_every_command_has_json_or_a_reason() -> None:
    without = {words for words, one in commands().items() if not any("--json" in option.opts for option in one.params)}
    assert without == set(NO_JSON)


def test_a_recipe_and_its_keys_are_told_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def result(*words: str) -> Any:
        return told(ends(monkeypatch, capsys, "recipe", *words, "--json")[1], 0, f"recipe {words[0]}")["result"]

    assert result("new", "mine", "--from", "quickstart") == {"recipe": "mine.yaml"}
    assert result("show", "mine.yaml") == {"recipe": "mine.yaml", "text": Path("mine.yaml").read_text("utf-8")}
    (steps,) = result("explain", "training.steps")
    assert (steps["key"], steps["required"]) == ("training.steps", False)
    assert steps["doc"].startswith("Optimiser steps")
    values = {one["key"]: one for one in result("explain", "mine.yaml", "training.steps=3")}
    assert (values["training.steps"]["value"], values["training.steps"]["origin"]) == (3, "override")
    assert values["data.sources.0.path"]["origin"].startswith("mine.yaml:")


def test_a_row_is_told_with_its_mask_and_its_pictures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = TinyRun.make(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=run.folder), "utf-8")

    def shown(number: int, *overrides: str) -> Any:
        words = ("data", "show", str(tmp_path / "recipe.yaml"), *overrides, "--row", str(number), "--json")
        return told(ends(monkeypatch, capsys, *words)[1], 0, "data show")["result"]

    row = shown(3)
    assert (row["row"], row["rows"], row["origin"]) == (3, 28, {"file": str(tmp_path / "rows.jsonl"), "line": 3})
    assert [(one["name"], one["width"], one["height"]) for one in row["pictures"]] == [("2.png", 42, 40)]
    assert sum(one["tokens"] for one in row["pieces"]) == row["tokens"]["total"]
    assert "it is blue" in "".join(one["text"] for one in row["pieces"] if one["kind"] == "learned")
    pairs = [json.dumps(pair_row(tmp_path, number)) for number in range(3)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs), "utf-8")
    pair = shown(1, "training.objective=dpo", f"data.sources=[{{path: {tmp_path}/pairs.jsonl}}]")
    for side, answer in (("chosen", "it is red"), ("rejected", "it is green")):
        assert answer in "".join(one["text"] for one in pair[side] if one["kind"] == "learned")


def test_converted_rows_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows, file = tmp_path / "rows.jsonl", tmp_path / "rows.messages.jsonl"
    rows.write_text("\n".join(json.dumps(picture_row(tmp_path, number)) for number in range(3)), "utf-8")
    code, printed, _ = ends(monkeypatch, capsys, "data", "convert", str(rows), "--json")
    assert told(printed, code, "data convert")["result"] == {"file": str(file), "rows": 3, "pictures": 0}
    assert len(file.read_text("utf-8").splitlines()) == 3


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
