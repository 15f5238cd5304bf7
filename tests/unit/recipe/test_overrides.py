"""``section.key=value`` changes a recipe by the recipe's own rules and is quoted when it is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from qlmm.core.errors import RecipeError
from qlmm.recipe.load import parse_recipe
from qlmm.recipe.schema import Recipe


def value(recipe: Recipe, key: str) -> Any:
    found: Any = recipe.model_dump()
    for part in key.split("."):
        found = found[int(part)] if isinstance(found, tuple | list) else found[part]
    return found


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("training.steps=20", "training.steps", 20),
        ("training.steps=null", "training.steps", None),
        ("training.steps=", "training.steps", None),
        ("training.learning_rate=1e-3", "training.learning_rate", 1e-3),
        ("training.gradient_checkpointing=false", "training.gradient_checkpointing", False),
        ("adapter.targets=[q_proj, v_proj]", "adapter.targets", ("q_proj", "v_proj")),
        ("data.sources.1.path=x.json", "data.sources.1.path", "x.json"),
        ("data.sources.0.limit=5", "data.sources.0.limit", 5),
        ("data.sources=[{path: y}]", "data.sources.0.path", "y"),
        ("base.connector={kind: linear}", "base.connector", {"kind": "linear"}),
        ("base.connector.queries=3", "base.connector.queries", 3),
        ("evaluation.rows=7", "evaluation.rows", 7),
        ("output.dir=runs/a b=c", "output.dir", "runs/a b=c"),
        ("output.dir='no'", "output.dir", "no"),
        ("output.dir=no", "output.dir", "no"),
        ("training.extra.adam_beta2=0.98", "training.extra", {"adam_beta2": 0.98}),
        ("training.extra.0=x", "training.extra", {"0": "x"}),
    ],
)
def test_an_override_sets_its_key(small: str, override: str, key: str, expected: object) -> None:
    assert value(parse_recipe(small, "r.yaml", [override]).recipe, key) == expected


def test_the_last_override_wins(small: str) -> None:
    loaded = parse_recipe(small, "r.yaml", ["training.steps=1", "training.steps=2"])
    assert loaded.recipe.training.steps == 2


def test_an_override_can_mend_what_the_file_says(small: str) -> None:
    assert parse_recipe(small.replace("r: 8", "r: x"), "r.yaml", ["adapter.r=4"]).recipe.adapter.r == 4


@pytest.mark.parametrize(
    ("override", "rendered"),
    [
        (
            "adapter.rank=8",
            "error[R012]: unknown key `rank`\n  --> command line:1:9\n  |\n1 | adapter.rank=8\n"
            "  |         ^^^^ not a key of adapter\nhelp: did you mean `r`?",
        ),
        (
            "trainig.steps=8",
            "error[R012]: unknown key `trainig`\n  --> command line:1:1\n  |\n1 | trainig.steps=8\n"
            "  | ^^^^^^^ not a section of a recipe\nhelp: did you mean `training`?",
        ),
        (
            "training.steps=ten",
            "error[R013]: `training.steps` should be a whole number\n  --> command line:1:16\n  |\n"
            "1 | training.steps=ten\n  |                ^^^ this is text",
        ),
        (
            "data.sources.2.path=x",
            "error[R030]: the list has 2 entries, numbered from 0\n  --> command line:1:14\n  |\n"
            "1 | data.sources.2.path=x\n  |              ^",
        ),
        (
            "adapter.r.x=1",
            "error[R030]: what stands above `x` has no keys\n  --> command line:1:11\n  |\n1 | adapter.r.x=1\n"
            "  |           ^",
        ),
        (
            "adapter.targets=[a",
            "error[R030]: expected ',' or ']', but got '<stream end>', while parsing a flow sequence\n"
            "  --> command line:1:19",
        ),
        (
            "training.extra={a: 1, a: 2}",
            "error[R003]: key `a` is given twice\n  --> command line:1:23\n",
        ),
        (
            "training.extra={a: [1, &x 2]}",
            "error[R004]: anchor `&x` is not allowed here\n  --> command line:1:24\n",
        ),
        ("--steps", "error[R030]: an override is `section.key=value`, on one line\n  --> command line:1:1\n"),
        ("training..steps=1", "error[R030]: an override is"),
        ("=1", "error[R030]: an override is"),
        ("", "error[R030]: an override is"),
        ("output.dir=a\nb", "error[R030]: an override is"),
        (f"{'a.' * 30}a=1", "error[R030]: an override is"),
        (f"data.sources.{'9' * 5000}.path=1", "error[R030]: the list has 2 entries"),
    ],
)
def test_a_wrong_override_is_quoted_with_the_place(small: str, override: str, rendered: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(small, "r.yaml", [override])
    assert str(caught.value).startswith(rendered)
    assert len(caught.value.problems) == 1


def test_overrides_are_counted(small: str) -> None:
    with pytest.raises(RecipeError, match="command line:3:9"):
        parse_recipe(small, "r.yaml", ["adapter.r=1", "adapter.alpha=1", "adapter.bad=1"])


def test_other_overrides_are_still_checked_after_a_bad_one(small: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(small, "r.yaml", ["oops", "adapter.r=x", "data.sources.9.path=1"])
    assert [problem.code for problem in caught.value.problems] == ["R030", "R013", "R030"]
