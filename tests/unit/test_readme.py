"""Every command that README and recipes show is one that exists, with options it knows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from qlmm.cli.app import app
from qlmm.recipe.library import shipped
from qlmm.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "recipes" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def _commands(page: Path) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    lines = [line.split(" #")[0] for block in blocks for line in block.splitlines()]
    return [one.strip() for line in lines for one in line.split("&&") if one.strip() and not line.startswith("#")]


SHOWN = [(page.name, command) for page in PAGES for command in _commands(page)]


def test_the_readme_starts_with_the_two_commands() -> None:
    assert [command.split()[:2] for _, command in SHOWN][:2] == [["make", "quickstart"], ["make", "test"]]


@pytest.mark.parametrize(("page", "command"), [pair for pair in SHOWN if pair[1].startswith("qlmm ")])
def test_every_qlmm_command_shown_can_be_parsed(page: str, command: str) -> None:
    del page
    here = typer.main.get_command(app)
    words = shlex.split(re.split(r"[|>]", command, maxsplit=1)[0])[1:]
    context = here.make_context("qlmm", [], resilient_parsing=True)
    name = "qlmm"
    while isinstance(here, TyperGroup) and words:
        name = words.pop(0)
        found = here.get_command(context, name)
        assert found is not None, f"no command `{name}`"
        here = found
    here.make_context(name, words, parent=context)


@pytest.mark.parametrize(("page", "command"), [pair for pair in SHOWN if pair[1].startswith("make ")])
def test_every_make_target_shown_exists(page: str, command: str) -> None:
    del page
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert command.split()[1] in targets


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_recipes_own_commands_load(name: str) -> None:
    lines = [line for line in shipped()[name].read_text("utf-8").splitlines() if line.startswith("#")]
    shown = [shlex.split(line.split(":", 1)[1]) for line in lines if line.startswith(("# run:", "# override:"))]
    assert len(shown) == 2
    for words in shown:
        assert words[:2] == ["qlmm", "finetune"]
        overrides = [word for word in words[3:] if not word.startswith("--")]
        load_recipe(shipped()[words[2]], overrides)
