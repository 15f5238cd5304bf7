"""``qlmm recipe``: what it prints, where, and with which exit code."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from qlmm.cli.app import main

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hf_" + "aB3dE5gH7j" * 3


class Shell:
    """Runs commands in an empty folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["qlmm", "recipe", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        said = self.capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(monkeypatch, capsys)


def test_list_names_every_shipped_recipe_with_its_summary(recipe: Shell) -> None:
    code, printed, said = recipe("list")
    assert (code, said) == (0, "")
    assert "owl_lora" in printed
    assert "mPLUG-Owl, stage 2" in printed
    assert len(printed.splitlines()) == len(list((ROOT / "recipes").glob("*.yaml")))


def test_show_prints_the_file(recipe: Shell) -> None:
    assert recipe("show", "owl_lora") == (0, (ROOT / "recipes" / "owl_lora.yaml").read_text("utf-8"), "")


def test_show_hides_keys(recipe: Shell) -> None:
    Path("mine.yaml").write_text(f"token: {SECRET}\n")
    assert recipe("show", "mine.yaml") == (0, "token: <redacted>\n", "")


def test_show_of_what_is_no_text_is_refused(recipe: Shell) -> None:
    Path("mine.yaml").write_bytes(b"\xff")
    code, printed, said = recipe("show", "mine.yaml")
    assert (code, printed) == (2, "")
    assert "error[R002]" in said


def test_check_says_ok_in_one_line(recipe: Shell) -> None:
    code, printed, said = recipe("check", "owl_lora", "training.steps=3", "training.seed=1")
    assert (code, said, printed.count("\n")) == (0, "", 1)
    assert re.fullmatch(r".*owl_lora\.yaml: ok, \d+ keys given, 2 overridden, \d+ at their default\n", printed)


def test_check_lists_every_problem_on_stderr_and_ends_with_2(recipe: Shell) -> None:
    code, printed, said = recipe("check", "owl_lora", "training.stesp=3", "adapter.r=x")
    assert (code, printed) == (2, "")
    assert said.count("error[") == 2
    assert "did you mean `steps`" in said


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("base.connector.kind=abstracter", "no connector is called `abstracter`"),
        ("data.sources.0.format=lava", "no format is called `lava`"),
        ("evaluation.sources=[{path: x, format: lava}]", "no format is called `lava`"),
    ],
)
def test_check_knows_connectors_and_formats_by_name(recipe: Shell, override: str, says: str) -> None:
    code, _, said = recipe("check", "owl_lora", override)
    assert code == 2
    assert says in said
    assert "--> command line:1:" in said
    assert "did you mean" in said


def test_explain_of_a_key_a_section_a_recipe_and_everything(recipe: Shell) -> None:
    assert "Optimiser steps." in recipe("explain", "training.steps")[1]
    assert recipe("explain", "output")[1].startswith("output.dir\n")
    assert "# override" in recipe("explain", "owl_lora", "training.steps=3")[1]
    assert "evaluation.max_new_tokens" in recipe("explain")[1]


def test_explain_of_an_unknown_key_suggests_one(recipe: Shell) -> None:
    code, _, said = recipe("explain", "training.stesp")
    assert code == 2
    assert "did you mean `training.steps`" in said


def test_new_copies_a_recipe_and_never_overwrites(recipe: Shell) -> None:
    code, printed, said = recipe("new", "mine", "--from", "owl_lora")
    assert (code, printed) == (0, "mine.yaml\n")
    assert "qlmm recipe check mine.yaml" in said
    assert recipe("check", "mine.yaml")[0] == 0
    before = Path("mine.yaml").read_text()
    assert recipe("new", "mine", "--from", "llava_qlora")[0] == 2
    assert Path("mine.yaml").read_text() == before
    assert os.listdir() == ["mine.yaml"]


def test_pages_are_printed_as_they_are_stored(recipe: Shell) -> None:
    assert recipe("list", "--markdown")[1] == (ROOT / "recipes" / "README.md").read_text("utf-8")
    assert recipe("explain", "--markdown")[1] == (ROOT / "docs" / "recipe.md").read_text("utf-8")
