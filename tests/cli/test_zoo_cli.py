"""`qlmm zoo`: what it prints and in which code it ends; and that other commands take its names."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from qlmm.cli.app import app
from qlmm.cli.arguments import adapter_folder
from qlmm.core.errors import QlmmError
from qlmm.core.secrets import redact
from qlmm.data.sample import ImageRef, Origin, Sample, Turn
from qlmm.recipe.zoo import shipped
from tests.run_facts import PROOF
from tests.talking import Loaded
from tests.zoo_runs import Zoo, finished_run

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    return Zoo.make(tmp_path, monkeypatch)


def test_list_shows_every_entry_within_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = run("zoo", "list")
    assert done.exit_code == 0
    assert shipped()
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines if line and not line.startswith(" ")} == {"name", *shipped()}
    assert max(len(line) for line in lines) <= 80
    assert "MB" in done.stdout


def test_show_tells_results_command_and_card(zoo: Zoo, tmp_path: Path) -> None:
    zoo.add(finished_run(tmp_path))
    done = run("zoo", "show", "mine")
    assert done.exit_code == 0, done.output
    assert "qlmm finetune zoo:mine" in done.stdout
    assert "right picture 3.894, another row's 4.643" in " ".join(done.stdout.split())
    assert "# Adapter trained with qlmm" in done.stdout
    assert "base_model_relation" not in done.stdout


def test_show_and_run_tell_a_script_the_same(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = zoo.add(finished_run(tmp_path))
    shown = json.loads(run("zoo", "show", "mine", "--json").stdout)["result"]
    assert (shown["name"], shown["summary"]) == ("mine", "Knows colours")
    assert PROOF.before is not None
    assert shown["proof"]["before"]["right"] == PROOF.before.right
    assert shown["card"] == redact((entry / "README.md").read_text("utf-8"))
    picture = tmp_path / "cat.png"
    Image.new("RGB", (8, 8)).save(picture)
    rows = [Sample((Turn("user", (ImageRef(picture), "what ?")), Turn("assistant", ("red",))), Origin("x", 1))]
    loaded = Loaded()
    of_run = SimpleNamespace(recipe=SimpleNamespace(evaluation=SimpleNamespace(max_new_tokens=40)))
    monkeypatch.setattr(loaded, "manifest", of_run, raising=False)
    monkeypatch.setattr("qlmm.proof.probe.probe_rows", lambda folder: rows)
    monkeypatch.setattr("qlmm.cli.conversation.load_adapter", lambda folder: loaded)
    asked: list[tuple[list[str], str | None]] = [([], "red"), (["what ?"], None), (["--image", str(picture)], None)]
    for words, expected in asked:
        done = run("zoo", "run", "mine", *words, "--json")
        assert done.exit_code == 0, done.output
        (said,) = json.loads(done.stdout)["result"]
        assert said.pop("answer").strip() == "turn 1, 1 pictures"
        assert said == {"pictures": [str(picture)], "question": "what ?", "expected": expected}
    text = run("zoo", "run", "mine").stdout
    assert "turn 1, 1 pictures" in text
    assert "expected" in text


def test_verify_counts_what_fails_and_ends_with_1(zoo: Zoo, tmp_path: Path) -> None:
    entry = zoo.add(finished_run(tmp_path))
    (entry / "probe.json").write_text("changed")
    told = run("zoo", "verify", "--json")
    assert told.exit_code == 1
    facts = json.loads(told.stdout)["result"]
    assert facts["verified"] is False
    assert [(one["name"], one["verified"]) for one in facts["entries"]] == [("mine", False)]
    assert "probe.json" in facts["entries"][0]["checks"][0]["found"]
    done = run("zoo", "verify", "mine")
    assert done.exit_code == 1
    assert "0 of 1 are what they say they are" in done.stdout


def test_an_empty_zoo_proves_nothing(zoo: Zoo) -> None:
    assert zoo.left() == []
    assert run("zoo", "verify").exit_code == 1


@pytest.mark.parametrize("words", [("show", "nothing"), ("verify", "nothing"), ("run", "nothing")])
def test_an_unknown_name_is_refused(zoo: Zoo, tmp_path: Path, words: tuple[str, ...]) -> None:
    zoo.add(finished_run(tmp_path))
    done = run("zoo", *words)
    assert isinstance(done.exception, QlmmError)
    assert done.exception.problems[0].code == "Z001"
    assert "known: mine" in str(done.exception)


def test_other_commands_take_the_name(zoo: Zoo, tmp_path: Path) -> None:
    zoo.add(finished_run(tmp_path))
    folder = adapter_folder("zoo:mine")
    assert (folder / "tokenizer.json").is_file()
    assert folder.is_relative_to(zoo.home)
    assert folder.name == "mine"
    nothing = "zoo:nothing"
    for words in (
        ("ask", nothing, "what?"),
        ("chat", nothing),
        ("push", nothing, "user/name"),
        ("prefer", nothing, "--prompts", "p.jsonl", "--out", "pairs.jsonl"),
        ("verify", nothing),
        ("merge", nothing, "out"),
        ("export", nothing, "--to", "peft", "--out", "out"),
    ):
        done = run(*words)
        assert isinstance(done.exception, QlmmError)
        assert done.exception.problems[0].code == "Z001", words
