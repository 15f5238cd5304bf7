"""Every objective a recipe can name has a trainer, rows to learn from and settings, and they are TRL's."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any, get_type_hints

import pytest
from transformers import Trainer

from qlmm.core.errors import RecipeError, UsageError
from qlmm.core.naming import names
from qlmm.model.numerics.precision import Precision
from qlmm.recipe.load import parse_recipe
from qlmm.recipe.schema import OBJECTIVES, OutputSection, TrainingSection
from qlmm.training.objective import objective as objective_of
from qlmm.training.objective import objectives, objectives_by_rows
from qlmm.training.objectives.dpo import LOSSES
from qlmm.training.trainers.base import PartsTrainer
from qlmm.training.trainers.reference import ReferenceTrainer
from qlmm.training.trl_settings import trainer_config

CPU, OUTPUT = Precision("cpu", "fp32"), OutputSection(dir="x")
ALL = names(OBJECTIVES)


def config(objective: Any, **keys: Any) -> Any:
    return trainer_config(TrainingSection(objective=objective, **keys), OUTPUT, CPU, steps=3)


RECIPE = "version: 1\nbase: {model: some/model}\ndata: {sources: [{path: rows.jsonl}]}\noutput: {dir: run}\n"


def test_a_recipe_names_every_file_and_no_other() -> None:
    for name in ALL:
        assert parse_recipe(RECIPE, "r.yaml", [f"training.objective={name}"]).recipe.training.objective == name
    with pytest.raises(RecipeError) as caught:
        parse_recipe(RECIPE, "r.yaml", ["training.objective=dop"])
    (problem,) = caught.value.problems
    assert problem.message == "`training.objective` should be dpo, kto, orpo, sft or simpo"
    assert problem.help == "did you mean `dpo`?"


def test_the_facts_of_objectives_need_neither_torch_nor_trl() -> None:
    code = "import sys; from qlmm.training.objective import objectives; objectives(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "trl", "transformers", "peft"} & set(done.stdout.split())


def test_every_kind_of_row_has_an_objective_and_pairs_are_judged_answers_too() -> None:
    assert objectives_by_rows() == {
        "conversation": ("sft",),
        "preference": ("dpo", "kto", "orpo", "simpo"),
        "feedback": ("kto",),
    }


@pytest.mark.parametrize("objective", ALL)
def test_a_trainer_is_trl_s_with_what_a_model_in_parts_needs(objective: str) -> None:
    made = objective_of(objective).trainer()
    assert issubclass(made, PartsTrainer)
    assert issubclass(made, Trainer)
    # The mixin comes first, or TRL's own methods would be called.
    steps = ("__init__", "compute_loss", "create_optimizer", "training_step", "_clip_grad_norm")
    for method in (*steps, "_get_train_sampler", "create_model_card"):
        assert method in vars(PartsTrainer)
        assert vars(made).get(method, getattr(made, method)) is vars(PartsTrainer)[method]
    assert made.loss_is_scaled_for_ga is (None if objective == "sft" else False)


@pytest.mark.parametrize("objective", ALL)
def test_its_settings_are_fields_of_trl(objective: str) -> None:
    one = objective_of(objective)
    fields = set(get_type_hints(one.config()))
    assert fields >= one.names | set(one.fixed) | set(one.defaults)
    assert one.names >= one.positive
    assert one.passed_on.isdisjoint(one.fixed)
    made = config(objective)
    assert type(made) is one.config()
    assert all(vars(made)[name] == value for name, value in one.defaults.items())


def test_simpo_is_the_loss_of_its_paper_with_a_beta_that_fits_means() -> None:
    made = config("simpo")
    assert (made.loss_type, made.cpo_alpha, made.alpha, made.beta, made.simpo_gamma) == ("simpo", 0.0, 0.0, 2.0, 0.5)
    made = config("simpo", extra={"beta": 10.0, "simpo_gamma": 3.0})
    assert (made.beta, made.simpo_gamma) == (10.0, 3.0)


def test_kto_takes_one_loss_by_name() -> None:
    assert config("kto").loss_type == "kto"
    assert config("kto", losses={"apo_zero_unpaired": 1.0}, batch_size=1).loss_type == "apo_zero_unpaired"
    made = config("kto", extra={"desirable_weight": 1.5, "undesirable_weight": 2, "beta": 0.3})
    assert (made.desirable_weight, made.undesirable_weight, made.beta) == (1.5, 2, 0.3)
    assert made.train_sampling_strategy == "sequential"


@pytest.mark.parametrize(
    ("objective", "keys", "code", "said", "help"),
    [
        ("simpo", {"losses": {"sigmoid": 1.0}},
         "T004", "sigmoid needs a reference, and objective simpo has none", "use objective dpo"),
        ("orpo", {"losses": {"kto": 1.0}},
         "T004", "kto needs a reference, and objective orpo has none", "use objective kto"),
        ("orpo", {"losses": {"sft": 1.0}}, "T004", "sft is not a loss of objective orpo", "use objective dpo"),
        ("orpo", {"losses": {"orpo": 1.0}}, "T004", "objective orpo has one loss of its own", "leave training.losses"),
        ("sft", {"losses": {"ipo": 1.0}}, "T004", "ipo belongs to preferences", "use objective dpo"),
        ("dpo", {"losses": {"kto": 1.0}}, "T004", "kto judges one answer", "use objective kto"),
        ("dpo", {"losses": {"sigmiod": 1.0}}, "T004", "TRL has no loss `sigmiod`", "did you mean `sigmoid`?"),
        ("kto", {"losses": {"ipo": 1.0}}, "T004", "ipo compares two answers", "use objective dpo"),
        ("kto", {"losses": {"kot": 1.0}}, "T004", "TRL has no loss `kot`", "did you mean `kto`?"),
        ("kto", {"losses": {"kto": 1.0, "apo_zero_unpaired": 1.0}}, "T004", "takes one loss", "leave one of"),
        ("kto", {"losses": {"kto": 0.5}}, "T004", "takes one loss, with weight 1", "desirable_weight"),
        ("kto", {"extra": {"desirable_weight": 0}}, "T004", "desirable_weight 0 must be above 0", "leave it out"),
        ("kto", {"extra": {"undesirable_weight": "1"}}, "T004", "undesirable_weight 1 must be above 0", "leave it out"),
        ("orpo", {"extra": {"beta": -0.1}}, "T004", "beta -0.1 must be above 0", "leave it out"),
        ("kto", {"batch_size": 1}, "T006", "1 row has none", "training.batch_size=2"),
        ("kto", {"extra": {"loss_type": "kto"}}, "T001", "`loss_type` is set by qlmm itself", "own key"),
        ("kto", {"extra": {"desirable_weigth": 0.1}}, "T001", "is not a field of TRL's KTOConfig", "desirable_weight"),
        ("kto", {"extra": {"label_smoothing_factor": 0.1}}, "T001", "cannot be passed on", "leave it out"),
        ("orpo", {"extra": {"use_liger_kernel": True}}, "T001", "it replaces the forward pass", "leave it out"),
        ("orpo", {"extra": {"simpo_gamma": 1.0}}, "T001", "is not a field of TRL's ORPOConfig", "leave it out"),
        ("simpo", {"extra": {"cpo_alpha": 1.0}}, "T001", "`cpo_alpha` is set by qlmm itself", "own key"),
        ("simpo", {"extra": {"generate_during_eval": True}}, "T001", "cannot be passed on", "leave it out"),
    ],
)  # fmt: skip
def test_what_an_objective_does_not_have_is_refused(
    objective: str, keys: dict[str, Any], code: str, said: str, help: str
) -> None:
    with pytest.raises(UsageError) as caught:
        config(objective, **keys)
    (problem,) = caught.value.problems
    assert problem.code == code
    assert said in problem.message
    assert help in (problem.help or "")


@pytest.mark.parametrize("objective", ALL)
def test_a_loss_of_another_objective_is_never_unknown(objective: str) -> None:
    others = {loss for name, other in objectives().items() if name != objective for loss in other.losses}
    for loss in others - set(objective_of(objective).losses):
        with pytest.raises(UsageError, match="T004") as caught:
            config(objective, losses={loss: 1.0})
        assert "use objective" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ({"objective": "dpo"}, math.log(2)),
        ({"objective": "dpo", "losses": {"sigmoid": 0.8}}, 0.8 * math.log(2)),
        ({"objective": "dpo", "losses": {"ipo": 1.0}}, None),
        ({"objective": "dpo", "losses": {"sigmoid": 0.8, "sft": 1.0}}, None),
        ({"objective": "kto"}, 0.5),
        ({"objective": "kto", "losses": {"apo_zero_unpaired": 1.0}}, 0.5),
        ({"objective": "kto", "extra": {"desirable_weight": 1.5, "undesirable_weight": 1.5}}, 0.75),
        ({"objective": "kto", "extra": {"desirable_weight": 1.5}}, None),
        ({"objective": "sft"}, None),
        ({"objective": "orpo"}, None),
        ({"objective": "simpo"}, None),
    ],
)
def test_the_first_loss_is_known_where_it_depends_on_the_reference_alone(
    keys: dict[str, Any], value: float | None
) -> None:
    training = TrainingSection(**keys)
    assert objective_of(training.objective).first_loss(training) == (value if value is None else pytest.approx(value))


def test_an_objective_has_a_reference_where_its_trainer_keeps_one() -> None:
    assert {name for name, one in objectives().items() if one.reference} == {"dpo", "kto"}
    assert all(issubclass(objective_of(name).trainer(), ReferenceTrainer) for name in ("dpo", "kto"))
    assert len(LOSSES) == len(set(LOSSES))
