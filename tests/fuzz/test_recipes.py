"""Every shipped recipe, changed in ways that nobody meant: it is read, or refused as a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from qlmm.core.errors import RecipeError
from qlmm.recipe.explain import explain
from qlmm.recipe.load import as_yaml, parse_recipe
from qlmm.recipe.resume_rules import compare
from qlmm.recipe.schema_keys import keys
from tests.fuzz.inputs import FUZZ, damaged, mutated, soon, values

RECIPES = sorted(Path(__file__).parents[2].glob("recipes/*.yaml"))
KEYS = sorted({part.rstrip("[]") for key in keys() for part in key.name.split(".")})
TEXTS = st.text(max_size=120) | st.text(alphabet=st.sampled_from(list("ab1 \n:-[]{},&*!|'\"#")), max_size=60)
ALPHABET = "ab1 \n:-[]{}*&!\"'#.~\t"


def _read_or_refused(text: str, *overrides: str) -> None:
    """A recipe that is read can be shown, written out and read back."""
    with soon():
        try:
            loaded = parse_recipe(text, "r.yaml", overrides)
        except RecipeError as error:
            refused = error
        else:
            refused = None
        if refused is not None:
            assert refused.problems
            assert str(refused)
            return
        assert explain(loaded)
        assert compare(loaded.recipe, parse_recipe(as_yaml(loaded.recipe), "r.yaml").recipe) == []


def _written(raw: Any) -> str:
    return yaml.safe_dump(raw, allow_unicode=True, sort_keys=False)


@FUZZ
@given(path=st.sampled_from(RECIPES), data=st.data())
def test_a_recipe_with_other_values_is_read_or_refused(path: Path, data: st.DataObject) -> None:
    _read_or_refused(_written(mutated(data, yaml.safe_load(path.read_text()), KEYS)))


@FUZZ
@given(path=st.sampled_from(RECIPES), data=st.data())
def test_a_recipe_of_damaged_text_is_read_or_refused(path: Path, data: st.DataObject) -> None:
    _read_or_refused(damaged(data, path.read_text(), ALPHABET))


@FUZZ
@given(
    path=st.sampled_from(RECIPES),
    key=st.sampled_from([key.name.replace("[]", ".0") for key in keys()]),
    odd=values(KEYS),
)
def test_any_value_of_any_key_is_taken_or_refused(path: Path, key: str, odd: Any) -> None:
    _read_or_refused(path.read_text(), f"{key}={yaml.safe_dump(odd, default_flow_style=True, width=10**9).strip()}")


@FUZZ
@given(text=TEXTS, override=TEXTS)
@example(text="a: &a [b]\nc: *a", override="a.b.c=1")
def test_only_recipe_errors_leave(text: str, override: str) -> None:
    with soon(), pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml", [override])
    assert caught.value.problems
    assert str(caught.value)
