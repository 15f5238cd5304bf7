"""Every command that a page or a recipe shows is one that exists, with options it knows; cheap ones are run."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from qlmm.cli.app import app, main
from qlmm.recipe.library import shipped
from qlmm.recipe.load import load_recipe
from tests.pages import ROOT, Block, blocks, spans


def _lines(block: Block) -> list[Block]:
    """The commands of a block, with the lines that a backslash continues."""
    text = block.text.replace("\\\n", " ")
    lines = [line.split(" #")[0] for line in text.splitlines() if not line.startswith("#")]
    return [Block(block.page, block.line, one.strip()) for line in lines for one in line.split("&&") if one.strip()]


SHOWN = [line for block in blocks("bash") for line in _lines(block)]
# What a screen shows after a prompt, and what stands in a sentence.
TYPED = [Block(b.page, b.line, line.text[2:]) for b in blocks("text") for line in _lines(b) if line.text[:2] == "$ "]
# The changelog may name commands of any version.
NAMED = [
    one
    for one in spans()
    if one.text.startswith("qlmm ") and not re.search(r"\\\||…", one.text) and one.page != "CHANGELOG.md"
]
COMMANDS = [one for one in SHOWN + TYPED + NAMED if one.text.startswith("qlmm ")]
# Read no weights and write nothing but where they are told to.
CHEAP = re.compile(r"qlmm (recipe (list|explain|show|new)|zoo (list|show))\b")
RUN = sorted({one.text.split(" > ")[0] for one in SHOWN if CHEAP.match(one.text)})


def parse(command: str) -> None:
    """Let the command line parse a command; it stops before it runs."""
    here = typer.main.get_command(app)
    words = shlex.split(re.split(r"[|>]", command, maxsplit=1)[0])[1:]
    context = here.make_context("qlmm", [], resilient_parsing=True)
    name = "qlmm"
    while isinstance(here, TyperGroup) and words and not words[0].startswith("-"):
        name = words.pop(0)
        found = here.get_command(context, name)
        assert found is not None, f"no command `{name}`"
        here = found
    here.make_context(name, words, parent=context)


def test_the_readme_starts_with_the_two_commands() -> None:
    assert [one.text.split()[:2] for one in SHOWN][:2] == [["make", "quickstart"], ["make", "test"]]


def test_pages_show_commands_of_every_kind() -> None:
    """Guards the lists above against a change of the pages' form that would leave them empty."""
    assert len(SHOWN) > 40
    assert len(NAMED) > 20
    assert len(TYPED) >= 1
    assert len(RUN) >= 5


@pytest.mark.parametrize("shown", [one for one in COMMANDS if one not in NAMED], ids=str)
def test_every_qlmm_command_shown_can_be_parsed(shown: Block) -> None:
    parse(shown.text)


def test_every_command_named_in_a_sentence_exists() -> None:
    """Arguments may be left out there, so that only the command and its options are looked up."""
    root = typer.main.get_command(app)
    for one in NAMED:
        words, here = shlex.split(one.text.split(" > ")[0])[1:], root
        context = here.make_context("qlmm", [], resilient_parsing=True)
        while isinstance(here, TyperGroup) and words and not words[0].startswith("-"):
            found = here.get_command(context, words.pop(0))
            assert found is not None, f"{one}: {one.text}"
            here = found
        known = {option for parameter in here.params for option in parameter.opts} | {"--help"}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known, f"{one}: {one.text}"


@pytest.mark.parametrize("command", RUN)
def test_a_cheap_command_runs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert said.out or said.err


@pytest.mark.parametrize("shown", [one for one in SHOWN if one.text.startswith("make ")], ids=lambda one: one.text)
def test_every_make_target_shown_exists(shown: Block) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert shown.text.split()[1] in targets


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_recipes_own_commands_load(name: str) -> None:
    lines = [line for line in shipped()[name].read_text("utf-8").splitlines() if line.startswith("#")]
    shown = [shlex.split(line.split(":", 1)[1]) for line in lines if line.startswith(("# run:", "# override:"))]
    assert len(shown) == 2
    for words in shown:
        assert words[:2] == ["qlmm", "finetune"]
        overrides = [word for word in words[3:] if not word.startswith("--")]
        load_recipe(shipped()[words[2]], overrides)
