"""Every key says whether an unfinished run may go on with another value of it."""

from __future__ import annotations

import pytest

from qlmm.core.errors import RecipeError
from qlmm.recipe.load import as_yaml, parse_recipe
from qlmm.recipe.resume_rules import FREE, NEVER, compare, refuse
from qlmm.recipe.schema_keys import keys


def test_the_tables_name_keys_of_the_schema_once() -> None:
    assert len({*FREE, *NEVER}) == len([*FREE, *NEVER])
    assert {*FREE, *NEVER} < {key.name for key in keys()}


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("training.save_every=50", "free", "training.save_every: 200 → 50"),
        ("training.keep=9", "free", "training.keep: 2 → 9"),
        ("training.on_nonfinite=skip", "free", "training.on_nonfinite: stop → skip"),
        ("data.max_bad_rows=3", "free", "data.max_bad_rows: 0.0 → 3.0"),
        ("output.trackers=[wandb]", "free", "output.trackers: [] → [wandb]"),
        ("training.seed=1", "fork", "training.seed: 0 → 1"),
        ("training.steps=5", "fork", "training.steps: unset → 5"),
        ("training.learning_rate=1", "fork", "training.learning_rate: 0.0001 → 1.0"),
        ("training.extra={adam_beta2: 0.9}", "fork", "training.extra: {} → {'adam_beta2': 0.9}"),
        ("data.sources.1.weight=3", "fork", "data.sources.1.weight: 2.0 → 3.0"),
        ("base.vision=x", "never", "base.vision: builtin:a → x"),
        ("base.connector.kind=linear", "never", "base.connector.kind: mlp → linear"),
        ("base.connector.queries=3", "never", "base.connector.queries: unset → 3"),
        ("adapter.r=4", "never", "adapter.r: 8 → 4"),
        ("adapter.targets=[q_proj]", "never", "adapter.targets: [all-linear] → [q_proj]"),
    ],
)
def test_a_change_is_named_with_old_and_new(small: str, override: str, kind: str, message: str) -> None:
    old, new = parse_recipe(small, "a").recipe, parse_recipe(small, "b", [override]).recipe
    assert [(change.kind, change.message) for change in compare(old, new)] == [(kind, message)]


def test_writing_a_default_out_is_no_change(small: str) -> None:
    loaded = parse_recipe(small, "a")
    assert compare(loaded.recipe, parse_recipe(as_yaml(loaded.recipe), "b").recipe) == []


def test_a_source_more_is_a_change_of_each_of_its_keys(small: str) -> None:
    more = small.replace("      weight: 2\n", "      weight: 2\n    - path: third\n")
    changes = compare(parse_recipe(small, "a").recipe, parse_recipe(more, "b").recipe)
    assert "data.sources.2.path: unset → third" in [change.message for change in changes]
    assert {change.kind for change in changes} == {"fork"}


def test_a_native_base_instead_of_an_assembled_one_is_never(small: str) -> None:
    native = small.replace(small[small.index("  vision") : small.index("adapter:")], "  model: x\n")
    changes = compare(parse_recipe(small, "a").recipe, parse_recipe(native, "b").recipe)
    assert {change.kind for change in changes} == {"never"}


def test_free_changes_pass_and_others_are_refused_together(small: str) -> None:
    old = parse_recipe(small, "a").recipe
    refuse(compare(old, parse_recipe(small, "b", ["training.keep=3"]).recipe), "runs/small")
    changed = parse_recipe(small, "b", ["training.keep=3", "training.seed=1", "adapter.r=4"]).recipe
    with pytest.raises(RecipeError) as caught:
        refuse(compare(old, changed), "runs/small")
    assert [problem.message for problem in caught.value.problems] == [
        "runs/small was started with another adapter.r: 8 → 4",
        "runs/small was started with another training.seed: 0 → 1",
    ]
    assert "output.dir=runs/small-2" in str(caught.value)


@pytest.mark.parametrize(("accumulation", "kinds"), [(8, {"free"}), (7, {"fork"})])
def test_rows_a_pass_are_free_while_rows_a_step_stay_and_the_loss_allows_it(
    small: str, accumulation: int, kinds: set[str]
) -> None:
    old = parse_recipe(small, "a", ["training.batch_size=4", "training.accumulation=2"]).recipe
    new = parse_recipe(small, "b", ["training.batch_size=1", f"training.accumulation={accumulation}"]).recipe
    assert {change.kind for change in compare(old, new, separable=True)} == kinds
    assert {change.kind for change in compare(old, new)} == {"fork"}
