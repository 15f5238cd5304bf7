"""Shipped recipes are found by name, say what they need, and can be copied but never overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlmm.core.errors import RecipeError
from qlmm.recipe import library, zoo
from qlmm.recipe.load import load_recipe
from tests.unit.recipe.shipped import MODELS, commands

ROOT = Path(__file__).resolve().parents[3]
ASSEMBLED = {"quickstart", "owl_pretrain", "owl_lora", "llava_pretrain"}
FAMILIES = {"llava_qlora", "qwen2_5_vl", "qwen3_vl", "smolvlm2", "internvl3", "gemma3", "paligemma2"} | {
    "llava_onevision",
    "llama3_2_vision",
    "idefics3",
    "blip2",
    "instructblip",
}
ALIGNED = {"quickstart_dpo", "owl_dpo", "llava_rlaifv_dpo", "mpo"}
SHIPPED = ASSEMBLED | FAMILIES | ALIGNED


def test_the_shipped_recipes_are_these() -> None:
    assert set(library.shipped()) == SHIPPED
    assert {path.stem for path in (ROOT / "recipes").glob("*.y*ml")} == SHIPPED


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_recipe_reads_and_opens_with_what_a_user_needs(name: str) -> None:
    path = library.resolve(name)
    recipe = load_recipe(path).recipe
    about = library.header(path)
    assert about.summary
    assert set(about.facts) == set(library.LABELS)
    assert "estimate" in about.facts["hardware"] or "measured" in about.facts["hardware"]
    assert about.facts["run"] == f"qlmm finetune {name}"
    assert recipe.output.dir == f"runs/{name}"


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_the_override_example_of_a_shipped_recipe_works(name: str) -> None:
    path = library.resolve(name)
    words = library.header(path).facts["override"].split()
    assert words[:3] == ["qlmm", "finetune", name]
    assert words[3:]
    load_recipe(path, words[3:])


def test_every_promised_model_is_named_by_a_recipe_or_in_its_header() -> None:
    reached = commands()
    assert set(reached) == set(MODELS)
    assert {recipe for recipe, *_ in reached.values()} == FAMILIES


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_fine_tuned_by_the_command_that_names_it(model: str) -> None:
    name, *overrides = commands()[model]
    assert load_recipe(library.resolve(name), overrides).recipe.base.model == model


@pytest.mark.parametrize("model", MODELS)
def test_a_model_has_its_quantised_language_model_and_its_connector_trained(model: str) -> None:
    """Only the smallest is not stored in 4 bits; only a connector of 1.8 billion weights is not trained in full."""
    name, *overrides = commands()[model]
    recipe = load_recipe(library.resolve(name), overrides).recipe
    assert recipe.base.quantize == ("none" if "256M" in model else "nf4")
    assert recipe.adapter.language == "lora"
    assert recipe.adapter.connector == ("lora" if name == "llama3_2_vision" else "full")
    assert recipe.adapter.vision == "frozen"
    assert recipe.training.gradient_checkpointing


def test_the_page_of_recipes_is_current() -> None:
    page = (ROOT / "recipes" / "README.md").read_text("utf-8")
    assert page == library.readme(), "write it anew: qlmm recipe list --markdown > recipes/README.md"


def test_a_recipe_is_a_path_or_a_shipped_name(small_file: Path) -> None:
    assert library.resolve("small.yaml") == Path("small.yaml")
    assert library.resolve("owl_lora").samefile(ROOT / "recipes" / "owl_lora.yaml")
    Path("owl_lora").write_text("mine")
    assert library.resolve("owl_lora") == Path("owl_lora")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("owl_lroa", "did you mean `owl_lora`"),
        ("recipes/owl_lora.yaml", "did you mean `owl_lora`"),
        ("nothing_like_it", "known: "),
        (".", "is a folder"),
        ("", "is a folder"),
        ("x" * 5000, "no recipe|not a file name"),
        ("a\0b", "no recipe|not a file name"),
    ],
)
def test_what_is_neither_is_refused(small_file: Path, name: str, says: str) -> None:
    with pytest.raises(RecipeError, match=rf"(?s)R001.*({says})"):
        library.resolve(name)


def test_installed_recipes_come_before_those_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "qlmm"
    (package / "recipe").mkdir(parents=True)
    monkeypatch.setattr(zoo, "__file__", str(package / "recipe" / "zoo.py"))
    assert library.folder() == tmp_path / "site" / "recipes"
    (package / "recipes").mkdir()
    assert library.folder() == package / "recipes"


def test_a_copy_has_its_own_name_and_run_directory(small_file: Path) -> None:
    path = library.copy("mine", "owl_lora", Path())
    assert path == Path("mine.yaml")
    assert load_recipe(path).recipe.output.dir == "runs/mine"
    assert library.header(path).facts["run"] == "qlmm finetune mine.yaml"
    assert "runs/owl_pretrain/adapter" in path.read_text()


def test_nothing_is_overwritten(small_file: Path) -> None:
    before = small_file.read_text()
    with pytest.raises(RecipeError, match="R051"):
        library.copy("small", "owl_lora", Path())
    assert small_file.read_text() == before


@pytest.mark.parametrize("name", ["../up", "", "a/b", ".hidden", "-x", "a\0b", "x" * 300])
def test_odd_names_for_a_copy_are_refused(small_file: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="R050"):
        library.copy(name, "owl_lora", Path())
    assert [path.name for path in Path().iterdir()] == ["small.yaml"]


def test_a_file_without_an_opening_comment_has_an_empty_header(small_file: Path) -> None:
    assert library.header(small_file) == library.Header("small", "", {})
