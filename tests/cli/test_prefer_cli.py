"""`qlmm prefer`: what is wrong is refused with a way out, before a model is loaded and before anything is written."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from qlmm.cli.app import app
from qlmm.cli.commands import prefer as module
from qlmm.core.errors import QlmmError
from qlmm.preference_data.summary import Summary
from tests.unit.artifacts.adapters import adapter_folder

ROW = {"messages": [{"role": "user", "content": "What?"}]}
SUMMARY = Summary(10, 4, 100, 27, 140, 0.34, 0.9, 12, 11, 0.5, 11.4, 11.6)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    adapter_folder(tmp_path)
    (tmp_path / "q.jsonl").write_text(json.dumps(ROW) + "\n")
    monkeypatch.chdir(tmp_path)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("qlmm.preference_data.prefer.load", never)
    monkeypatch.setattr("qlmm.preference_data.prefer.load_base", never)
    return tmp_path


def refusal(words: Sequence[str]) -> QlmmError:
    found = CliRunner().invoke(app, ["prefer", "adapter", *words])
    assert isinstance(found.exception, QlmmError), found.output
    return found.exception


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--answers", "1"], "J001"),
        (["--temperature", "0"], "J001"),
        (["--temperature", "nan"], "J001"),
        (["--per-prompt", "0"], "J001"),
        (["--limit", "0"], "J001"),
        (["--out", "nowhere/pairs.jsonl"], "J002"),
        (["--out", "q.jsonl"], "J002"),
        (["--out", "."], "J002"),
        (["--prompts", "none.jsonl"], "D002"),
        (["--prompts", "empty.jsonl"], "D007"),
        (["--prompts", "other.jsonl"], "D004"),
        (["--image-root", "nowhere", "--prompts", "shown.jsonl"], "D001"),
        (["--judge", "language"], "M010"),
        (["--judge", "no-such-folder/no-such-model"], "M003"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else value,
)
def test_bad_input_is_refused_with_nothing_written(folder: Path, words: list[str], code: str) -> None:
    (folder / "empty.jsonl").touch()
    (folder / "other.jsonl").write_text('{"foo": 1}\n')
    (folder / "shown.jsonl").write_text(json.dumps({**ROW, "images": ["a.png"]}) + "\n")
    (folder / "language").mkdir()
    (folder / "language" / "config.json").write_text('{"model_type": "llama"}')
    before = sorted(folder.rglob("*"))
    error = refusal(["--prompts", "q.jsonl", "--out", "pairs.jsonl", *words])
    assert error.problems[0].code == code
    assert error.problems[0].help
    assert error.exit_code == 2
    assert sorted(folder.rglob("*")) == before


def test_what_is_no_adapter_is_refused_before_anything_heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qlmm.preference_data.prefer", None)
    with pytest.raises(QlmmError) as caught:
        module.prefer(str(tmp_path), "q.jsonl", tmp_path / "pairs.jsonl")
    assert caught.value.problems[0].code == "A001"


def ending(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> None:
    monkeypatch.setattr("qlmm.artifacts.adapter.manifest.read_manifest", lambda folder: None)
    monkeypatch.setattr("qlmm.preference_data.prefer.prefer", lambda *_, **__: outcome)


def test_the_summary_fits_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    ending(monkeypatch, SimpleNamespace(summary=SUMMARY))
    module.prefer(str(tmp_path), "q.jsonl", Path("pairs.jsonl"))
    said = capsys.readouterr()
    assert all(len(line) <= 80 for line in said.out.splitlines())
    for fact in ("10, 4 without a pair", "140, 34.0 % refuted", "12 found, 11 after", "r = 0.50", "11.4 chosen"):
        assert fact in said.out
    assert "warning" not in said.err


def test_a_judge_that_hardly_says_yes_or_no_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ending(monkeypatch, SimpleNamespace(summary=replace(SUMMARY, heard=0.01)))
    module.prefer(str(tmp_path), "q.jsonl", tmp_path / "pairs.jsonl")
    assert "neither yes nor no" in capsys.readouterr().err


def test_the_summary_can_be_read_by_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ending(monkeypatch, SimpleNamespace(summary=SUMMARY))
    module.prefer(str(tmp_path), "q.jsonl", tmp_path / "pairs.jsonl", as_json=True)
    found = json.loads(capsys.readouterr().out)["result"]
    assert found["pairs"] == 11
    assert found["records"].endswith("pairs.jsonl.records.jsonl")


def test_a_stopped_run_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ending(monkeypatch, SimpleNamespace(summary=None, done=3, total=10, signal=15))
    with pytest.raises(typer.Exit) as caught:
        module.prefer(str(tmp_path), "q.jsonl", tmp_path / "pairs.jsonl")
    assert caught.value.exit_code == 143
    said = capsys.readouterr()
    assert said.out == ""
    assert "stopped after 3 of 10 prompts; the same command goes on from there" in said.err
