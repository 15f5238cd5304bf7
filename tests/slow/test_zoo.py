"""Every adapter of the zoo is what it says, can be made again, and answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maintenance.zoo_entry import check
from qlmm.artifacts.adapter.manifest import read_manifest
from qlmm.artifacts.zoo.check import check_entry
from qlmm.cli.app import app
from qlmm.recipe.library import resolve
from qlmm.recipe.load import load_recipe
from qlmm.recipe.zoo import shipped
from qlmm.training.plan import make_plan

pytestmark = pytest.mark.slow

KINDS = {"owl_kinds", "llava_kinds", "owl_kinds_dpo", "lora_connector_kinds"}


def test_these_are_shipped() -> None:
    assert set(shipped()) >= KINDS


@pytest.mark.parametrize("name", sorted(KINDS))
def test_an_entry_is_what_it_says_and_says_the_same_again(name: str) -> None:
    verdict = check_entry(name)
    assert verdict.holds, verdict.checks
    check(shipped()[name])
    assert {check.name for check in verdict.checks} >= {"completed", "files", "base", "answers"}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_an_entrys_recipe_can_be_run_on_the_same_rows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ready = make_plan(load_recipe(resolve(f"zoo:{name}")).recipe)
    recorded = read_manifest(shipped()[name])
    assert ready.data == recorded.data
    assert ready.facts.steps == recorded.steps


def test_an_entry_answers_about_pictures_it_was_not_trained_on() -> None:
    done = CliRunner().invoke(app, ["zoo", "run", "owl_kinds"])
    assert done.exit_code == 0, done.output
    found = re.findall(r"(?m)^  (question|answer|expected) +(\S.*)$", done.stdout)
    assert [name for name, _ in found] == ["question", "answer", "expected"] * 2
