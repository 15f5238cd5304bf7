"""What is chosen for a budget fits it and uses it; the rows of a step stay, and a run that goes on keeps the choice."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from qlmm import api
from qlmm.core.errors import RecipeError, UsageError
from qlmm.model.inspection.forecast import HEAP, LIBRARIES, MIB
from qlmm.model.numerics.precision import Precision
from qlmm.proof.records import Chosen
from qlmm.training.fit import FitFacts, Wish, fit
from qlmm.training.ground import Ground
from qlmm.training.load import every
from qlmm.training.memory_choice import BUSY_TOKENS, applied, asked, overrides
from qlmm.training.need import Need
from qlmm.training.plan import make_plan
from qlmm.training.rows import read_rows
from tests.runs import TinyRun

NOTHING = LIBRARIES + HEAP
SIX = ("training.batch_size=3", "training.accumulation=2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return TinyRun.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def need(tiny: TinyRun) -> Need:
    """Of the tiny run, if it were on a GPU."""
    recipe = tiny.recipe(*SIX).recipe
    ground = Ground.of(recipe)
    return Need.of(recipe, ground, Precision("cuda", "bf16"), read_rows(recipe, ground.encoder))


def test_options_begin_with_the_fastest_and_keep_the_rows_of_a_step(tiny: TinyRun, need: Need) -> None:
    found = need.options(tiny.recipe(*SIX).recipe)
    assert found[0] == Chosen(6, 1, 0, "adamw")
    assert found[-1] == Chosen(1, 6, 1, "paged_adamw_8bit")
    assert {one.batch_size * one.accumulation for one in found} == {6}
    assert [one.every for one in found[:6]] == [0, 8, 4, 3, 2, 1]
    assert [one.batch_size for one in found[::6]] == [6, 3, 2, 1] * 3
    assert [one.optimizer for one in found[::24]] == ["adamw", "adamw_8bit", "paged_adamw_8bit"]


def test_every_choice_fits_and_nothing_faster_would(tiny: TinyRun, need: Need) -> None:
    recipe = tiny.recipe(*SIX).recipe
    sizes = [need.needed(recipe, one).total for one in need.options(recipe)]
    for budget in range(min(sizes), max(sizes) + 1, max(1, (max(sizes) - min(sizes)) // 40)):
        chosen = need.fitting(recipe, budget)
        assert chosen is not None
        place = need.options(recipe).index(chosen)
        assert sizes[place] <= budget
        assert all(size > budget for size in sizes[:place])
        assert need.forecast(applied(recipe, chosen)).total == sizes[place], "what is planned is what was chosen"
    assert need.fitting(recipe, min(sizes) - 1) is None


def test_passes_do_not_grow_for_nothing(tiny: TinyRun, need: Need) -> None:
    recipe = tiny.recipe("training.batch_size=1", "training.accumulation=4096").recipe
    assert need.options(recipe)[0].batch_size == 1 << (BUSY_TOKENS // need.longest.tokens).bit_length() - 1


@pytest.mark.parametrize(
    ("words", "sizes", "ways"),
    [
        (("training.objective=kto", "training.batch_size=3", "training.accumulation=2"), {3}, {0, 1}),
        (("training.optimizer=paged_adamw_8bit",), {2, 1}, {0, 8, 4, 3, 2, 1}),
    ],
)
def test_what_an_objective_or_a_recipe_does_not_allow_is_not_chosen(
    tiny: TinyRun, need: Need, words: tuple[str, ...], sizes: set[int], ways: set[int]
) -> None:
    recipe = tiny.recipe(*words).recipe
    found = need.options(recipe)
    assert {one.batch_size for one in found} == sizes
    assert {one.every for one in found} == ways
    assert recipe.training.optimizer == found[0].optimizer
    assert "adamw_8bit" not in {one.optimizer for one in found} or recipe.training.optimizer != "paged_adamw_8bit"


def test_rows_that_a_processor_takes_one_by_one_stay_so(tiny: TinyRun, need: Need) -> None:
    recipe = tiny.recipe("training.batch_size=1", "training.accumulation=6").recipe
    assert {one.batch_size for one in replace(need, apart=True).options(recipe)} == {1}


def test_optimizers_of_bitsandbytes_are_for_gpus(tiny: TinyRun, need: Need) -> None:
    here = replace(need, precision=Precision("cpu", "fp32"))
    assert {one.optimizer for one in here.options(tiny.recipe().recipe)} == {"adamw"}


@pytest.mark.parametrize("chosen", [Chosen(6, 1, 0, "adamw"), Chosen(1, 6, 1, "adamw_8bit"), Chosen(2, 3, 4, "adamw")])
def test_overrides_say_what_was_applied(tiny: TinyRun, chosen: Chosen) -> None:
    recipe = tiny.recipe(*SIX).recipe
    words = overrides(recipe, chosen)
    assert tiny.recipe(*SIX, *words).recipe == applied(recipe, chosen)
    assert asked(applied(recipe, chosen)) == chosen
    assert overrides(applied(recipe, chosen), chosen) == ()


def test_other_settings_of_checkpointing_stay(tiny: TinyRun) -> None:
    kept = "training.extra={gradient_checkpointing_kwargs: {use_reentrant: false}}"
    recipe = tiny.recipe(kept, "training.gradient_checkpointing=true").recipe
    found = applied(recipe, Chosen(2, 1, 3, "adamw")).training
    assert found.extra == {"gradient_checkpointing_kwargs": {"use_reentrant": False, "every_n_layers": 3}}
    assert every(found) == 3


def facts(tiny: TinyRun, size: int | None, *words: str) -> FitFacts:
    wish = Wish(size, "so much") if size is not None else None
    return fit(tiny.recipe(*SIX, *words).recipe, wish)


def test_rows_that_are_here_are_counted_and_others_are_as_long_as_allowed(tiny: TinyRun) -> None:
    here = facts(tiny, None)
    gone = facts(tiny, None, "data.sources.0.path=gone.jsonl")
    assert (here.counted, gone.counted) == (True, False)
    assert here.tokens == max(one.total for one in make_plan(tiny.recipe().recipe).lengths)
    assert gone.tokens == 200


def test_what_fits_nothing_says_what_is_missing_and_what_would_help(tiny: TinyRun) -> None:
    smallest = facts(tiny, NOTHING)
    assert smallest.fits is False
    assert smallest.missing_bytes == smallest.total_bytes - NOTHING > 0
    assert smallest.proposals == ()
    long = ("data.max_length=20000", "data.sources.0.path=gone.jsonl")
    least = facts(tiny, NOTHING + 4 * MIB, *long)
    (shorter,) = (one for one in least.proposals if one.startswith("data.max_length="))
    assert facts(tiny, NOTHING + 4 * MIB, *long, shorter).fits
    assert not any("max_length" in one for one in least.chosen)


def test_a_card_that_is_not_here_is_computed_in_its_own_precision(tiny: TinyRun) -> None:
    found = {name: fit(tiny.recipe().recipe, Wish.of_card(name)).precision for name in ("T4", "4090")}
    assert found == {"T4": "fp16", "4090": "bf16"}


def test_a_recipes_own_memory_is_what_is_asked(tiny: TinyRun) -> None:
    found = fit(tiny.recipe("training.memory=2GB").recipe)
    assert (found.budget, found.fits) == ("2GB", True)


def test_training_memory_chooses_while_planning_and_says_so(tiny: TinyRun) -> None:
    roomy = make_plan(tiny.recipe(*SIX, "training.memory=4GB").recipe)
    assert roomy.facts.chosen == Chosen(6, 1, 0, "adamw")
    assert roomy.recipe.training.batch_size == 6
    assert any(note.startswith("chosen for training.memory=4GB: training.batch_size=6") for note in roomy.facts.notes)
    least = facts(tiny, 1).total_bytes
    tight = make_plan(tiny.recipe(*SIX, f"training.memory={least / MIB + 0.01:.4f}MB").recipe)
    assert tight.facts.chosen == Chosen(1, 6, 1, "adamw")
    assert tight.facts.memory_bytes <= least + MIB
    assert tight.facts.steps == roomy.facts.steps
    assert make_plan(tiny.recipe(*SIX).recipe).facts.chosen is None


def test_a_run_that_does_not_fit_is_refused_before_it_starts(tiny: TinyRun) -> None:
    with pytest.raises(UsageError, match="800MB is not enough: the smallest settings take") as refused:
        make_plan(tiny.recipe("training.memory=800MB").recipe)
    assert refused.value.problems[0].code == "T007"
    with pytest.raises(RecipeError, match="`12 bananas` is not a size of memory"):
        tiny.recipe("training.memory=12 bananas")


def test_a_run_that_goes_on_keeps_what_was_chosen(tmp_path: Path) -> None:
    run = TinyRun.make(tmp_path)
    words = ("training.memory=4GB", "training.steps=1", "training.save_every=1", "training.batch_size=1")
    outcome = api.finetune(run.recipe(*words, "training.accumulation=2"))
    assert outcome.status in {"finished", "unproven"}
    record = api.read_record(tmp_path / "run")
    assert record is not None
    assert record.plan.chosen == Chosen(2, 1, 0, "adamw")
    kept = Chosen(1, 2, 1, "adamw")
    assert make_plan(run.recipe(*words, "training.accumulation=2").recipe, kept).facts.chosen == kept
    with pytest.raises(RecipeError, match=r"started with another training\.memory: 4GB → 5GB"):
        api.plan(run.recipe(*words, "training.accumulation=2", "training.memory=5GB").recipe)


def test_a_command_of_overrides_can_be_pasted(tiny: TinyRun) -> None:
    words = overrides(tiny.recipe(*SIX).recipe, Chosen(1, 6, 3, "adamw_8bit"))
    assert [word for one in words for word in shlex.split(one)] == list(words)


def test_passes_by_tokens_are_forecast_and_given_up_by_a_choice(tiny: TinyRun) -> None:
    by_tokens = (*SIX, "training.tokens_per_batch=64")
    by_rows, found = fit(tiny.recipe(*SIX).recipe), fit(tiny.recipe(*by_tokens).recipe)
    assert found.rows == min(6, max(1, 64 // found.tokens)) != by_rows.rows
    chosen = fit(tiny.recipe(*by_tokens).recipe, Wish.of_size("8GB"))
    assert "training.tokens_per_batch=null" in chosen.chosen
    again = tiny.recipe(*by_tokens, *chosen.chosen).recipe.training
    assert again.tokens_per_batch is None
    assert again.batch_size * again.accumulation == 6


def test_two_rules_for_passes_are_refused(tiny: TinyRun) -> None:
    with pytest.raises(RecipeError, match="leave out either it or `tokens_per_batch`"):
        tiny.recipe("training.memory=8GB", "training.tokens_per_batch=64")
