"""``zoo:NAME`` is a recipe wherever one is named; and an installed qlmm has recipes and zoo where it looks for them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from qlmm.core.errors import UsageError
from qlmm.recipe import library, zoo
from qlmm.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", sorted(zoo.shipped()))
def test_the_recipe_of_an_entry_is_found_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("a file of this name is something else")
    path = library.resolve(f"zoo:{name}")
    assert path.samefile(ROOT / "adapters_zoo" / name / "recipe.yaml")
    assert load_recipe(path, ["training.steps=3"]).recipe.training.steps == 3


def test_what_the_zoo_has_not_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"(?s)Z001.*did you mean `owl_kinds`"):
        library.resolve("zoo:owl_kind")


def test_a_copy_of_an_entrys_recipe_has_its_own_name_and_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = library.copy("mine", "zoo:owl_kinds", Path())
    assert load_recipe(path).recipe.output.dir == "runs/mine"
    assert library.header(path).facts["run"] == "qlmm finetune mine.yaml"


@pytest.mark.parametrize("module", [library, zoo], ids=lambda module: module.__name__)
def test_a_wheel_has_the_folder_where_installed_code_looks_for_it(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the wheel is told to take along is laid out as pip would, and then looked for as from there."""
    here = module.folder()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wheel = settings["tool"]["hatch"]["build"]["targets"]["wheel"]
    taken = {tmp_path / target: ROOT / source for source, target in wheel["force-include"].items()}
    for target in taken:
        target.mkdir(parents=True)
    monkeypatch.setattr(zoo, "__file__", str(tmp_path / "qlmm" / "recipe" / "module.py"))
    assert taken[module.folder()] == here
    assert wheel["packages"] == ["qlmm"]


def test_a_wheel_leaves_no_file_of_the_package_out() -> None:
    """A folder of code or data that git ignores by its name would be missing from the wheel."""
    lines = (ROOT / ".gitignore").read_text("utf-8").split()
    ignored = {line.rstrip("/") for line in lines if line.endswith("/")}
    assert ignored
    shipped = [folder for top in ("qlmm", "recipes", "adapters_zoo") for folder in (ROOT / top).rglob("*")]
    assert len(shipped) > 100
    lost = {path for path in shipped if path.is_dir() and path.name in ignored - {"__pycache__"}}
    assert not lost


@pytest.mark.parametrize(
    ("target", "named"),
    [("zoo:owl_kinds", True), ("owl_lora", True), ("mine.yml", True), ("rows.jsonl", False), ("org/model", False)],
)
def test_what_names_a_recipe_and_what_names_something_else(
    target: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert library.is_recipe(target) is named
    (tmp_path / "owl_lora").mkdir()
    assert not library.is_recipe("owl_lora"), "a folder of rows or of a model in the way of a shipped name wins"
