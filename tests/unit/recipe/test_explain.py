"""Every key is documented, and the reference page is what the schema says."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlmm.core.errors import RecipeError
from qlmm.recipe.explain import describe, explain, explained, reference
from qlmm.recipe.load import parse_recipe
from qlmm.recipe.schema_keys import keys

ROOT = Path(__file__).resolve().parents[3]


def test_there_are_about_sixty_keys() -> None:
    assert 50 < len(keys()) <= 66


@pytest.mark.parametrize("key", keys(), ids=lambda key: key.name)
def test_every_key_has_a_description_a_type_and_a_default(key) -> None:  # type: ignore[no-untyped-def]
    assert len(key.doc) > 5
    assert key.doc.endswith(".")
    assert key.type
    assert key.default_text


def test_the_reference_page_is_current() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text("utf-8")
    assert page == reference(), "write it anew: qlmm recipe explain --markdown > docs/recipe.md"


def test_every_value_is_told_with_its_origin(small: str) -> None:
    loaded = parse_recipe(small, "r.yaml", ["training.steps=3", "base.connector.queries=64"])
    told = {item.name: (item.value, item.origin) for item in explained(loaded)}
    assert told["adapter.r"] == (8, "r.yaml:8")
    assert told["adapter.alpha"] == (32, "default")
    assert told["training.steps"] == (3, "override")
    assert told["data.sources.1.weight"] == (2.0, "r.yaml:13")
    assert told["base.connector.kind"] == ("mlp", "r.yaml:6")
    assert told["base.connector.queries"] == (64, "override")
    assert told["base.model"] == (None, "default")


def test_a_native_base_has_no_connector_to_tell_of(small: str) -> None:
    native = small.replace(small[small.index("  vision") : small.index("adapter:")], "  model: x\n")
    told = {item.name: item.value for item in explained(parse_recipe(native, "r.yaml"))}
    assert told["base.connector.kind"] is None


def test_the_text_shows_key_value_origin_and_documentation(small: str) -> None:
    text = explain(parse_recipe(small, "r.yaml"))
    assert "adapter.r = 8                                        # r.yaml:8\n    LoRA rank.\n" in text


def test_one_key_or_one_section_can_be_asked_for() -> None:
    assert describe("training.steps").startswith("training.steps\n    Optimiser steps.")
    assert describe("data").count("\n\n") == 14
    assert describe("data.sources").startswith("data.sources[].path")
    with pytest.raises(RecipeError, match=r"(?s)no key is called `training.stesp`.*did you mean `training.steps`"):
        describe("training.stesp")
