"""A name in a recipe is a file in a folder, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qlmm.core import naming
from qlmm.core.errors import UsageError


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package ``plugins_here`` with two good files, one without the attribute, and names that are not public."""
    folder = tmp_path / "plugins_here"
    folder.mkdir()
    for name, text in {
        "__init__": "",
        "linear": "THING = 1",
        "abstractor": "THING = 2",
        "empty": "",
        "_private": "raise RuntimeError",
        "Upper": "raise RuntimeError",
    }.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "plugins_here"
    for name in [name for name in sys.modules if name.startswith("plugins_here")]:
        del sys.modules[name]


def test_names_lists_public_files_without_importing_them(plugins: str) -> None:
    assert naming.names(plugins) == ["abstractor", "empty", "linear"]
    assert not [name for name in sys.modules if name.startswith(f"{plugins}.")]


def test_load_imports_on_use(plugins: str) -> None:
    assert naming.load(plugins, "abstractor", "THING", int) == 2
    assert f"{plugins}.linear" not in sys.modules


@pytest.mark.parametrize("name", ["abstracter", "os", "..os", "_private", "Upper", "", "linear.x"])
def test_unknown_name_is_refused_with_the_known_ones(plugins: str, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        naming.load(plugins, name, "THING", int)
    problem = caught.value.problems[0]
    assert problem.code == "N001"
    assert "known: abstractor, empty, linear" in (problem.help or "")


def test_near_name_is_suggested(plugins: str) -> None:
    with pytest.raises(UsageError, match="did you mean `abstractor`"):
        naming.load(plugins, "abstracter", "THING", int)


def test_file_without_its_object_is_named(plugins: str) -> None:
    with pytest.raises(UsageError, match=r"N002.*plugins_here\.empty does not define THING"):
        naming.load(plugins, "empty", "THING", int)


def test_an_object_of_another_kind_is_no_extension(plugins: str) -> None:
    with pytest.raises(UsageError, match=r"N002.*abstractor does not define THING, an instance of str"):
        naming.load(plugins, "abstractor", "THING", str)
