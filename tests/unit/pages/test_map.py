"""CONTRIBUTING's map is true: folders, layers, the "I want to …" table. No page names a file that is gone."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.pages import ROOT, spans

PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
TABLE = PAGE.partition("| I want to … | file |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
# A path that a page names; others are of the reader's own data and runs.
OURS = re.compile(r"(?:qlmm|tests|benchmarks|recipes|docs|adapters_zoo)/[\w./-]*")
# Files of `qlmm/` are also named without it, as in `training/run.py`.
ROOTS = (ROOT, ROOT / "qlmm")
MODULE = re.compile(r"[a-z_]+(?:/[a-z_0-9]+)+\.py")
# What an example of CONTRIBUTING adds.
EXAMPLES = set(re.findall(r"`([\w/]+\.(?:py|jinja|yaml))`\n\n```", PAGE))


def drawn() -> set[str]:
    """Folders and files of the tree that CONTRIBUTING draws."""
    block = re.search(r"```text\nqlmm/\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    found, at = set(), [""]
    for line in block[1].splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        at = [*at[:depth], name.rstrip("/")]
        found.add("/".join(at[1:]))
        assert len(line.split(maxsplit=1)) == 2, f"{name} is drawn without a word about it"
    return found


def folders() -> set[str]:
    """Packages and folders of templates below `qlmm/`."""
    files = [path for path in (ROOT / "qlmm").rglob("*") if path.suffix in (".py", ".jinja")]
    return {path.parent.relative_to(ROOT / "qlmm").as_posix() for path in files} - {"."}


def test_every_folder_drawn_is_there() -> None:
    assert not [name for name in drawn() if not (ROOT / "qlmm" / name).exists()]


def test_every_folder_is_drawn() -> None:
    """Down to two levels; deeper ones, and those that a line of their parent names, are left to the reader."""
    named_by_parent = {"artifacts/export/targets", "artifacts/export/llamacpp", "builtin/assets"}
    named_by_parent |= {"cli/commands", "cli/output"}
    assert folders() - drawn() <= named_by_parent


def test_the_layers_are_those_that_are_checked() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    layers = next(one["layers"] for one in settings["contracts"] if one["name"] == "data flows one way")
    listed = re.search(r"`(core → [^`]+)`", PAGE)
    assert listed is not None
    assert listed[1].split() == " → ".join(name.removeprefix("qlmm.") for name in reversed(layers)).split()


def test_the_table_answers_at_least_ten_questions() -> None:
    asked = [line.split("|")[1] for line in TABLE]
    added = ("connector", "objective", "data format", "export target", "error", "recipe key", "benchmark")
    for thing in (*added, "chat template", "vision tower", "command"):
        assert any(f"add a {thing} " in question or f"add an {thing} " in question for question in asked), thing
    for thing in ("loss", "mask", "proof", "merge", "run directory"):
        assert any(re.search(rf"find .*\b{thing}\b", question) for question in asked), thing


@pytest.mark.parametrize("line", TABLE, ids=lambda line: line.split("|")[1].strip())
def test_every_answer_names_files_that_are_there(line: str) -> None:
    paths = re.findall(r"`([\w./-]+)`", line.split("|")[2])
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_no_page_names_a_file_that_is_gone() -> None:
    named = [one for one in spans() if one.text not in EXAMPLES and one.page != "CHANGELOG.md"]
    paths = [one for one in named if OURS.fullmatch(one.text) or MODULE.fullmatch(one.text)]
    assert len(paths) > 50
    assert not [f"{one}: {one.text}" for one in paths if not any((root / one.text).exists() for root in ROOTS)]
