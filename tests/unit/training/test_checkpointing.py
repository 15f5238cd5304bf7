"""Whether no layer, every layer or every second one is checkpointed: losses and gradients are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GradientCheckpointingLayer, TrainerCallback

from qlmm.core.errors import UsageError
from qlmm.training.load import every
from qlmm.training.plan import make_plan
from qlmm.training.run import build
from qlmm.training.trainers.sft import SftTrainer
from tests.runs import TinyRun

SAME = ("training.steps=1", "evaluation.rows=1", "adapter.dropout=0.1")
ON = "training.gradient_checkpointing=true"
SECOND = "training.extra.gradient_checkpointing_kwargs.every_n_layers=2"


class Look(TrainerCallback):
    """Keeps the gradients of the first step, and which layers were checkpointed in it."""

    gradients: dict[str, torch.Tensor]
    layers: list[bool]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        named = model.named_parameters()
        self.gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
        decoder = model.get_base_model().model.language_model
        self.layers = [
            one.gradient_checkpointing for one in decoder.modules() if isinstance(one, GradientCheckpointingLayer)
        ]


def step(tiny: TinyRun, *words: str) -> tuple[float, Look]:
    plan, look = make_plan(tiny.recipe(*SAME, *words).recipe), Look()
    model, _ = build(plan)
    loss = SftTrainer(model, plan, callbacks=[look]).train().training_loss
    return float(loss), look


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return TinyRun.make(tmp_path_factory.mktemp("tiny"))


def test_every_second_layer_gives_the_gradients_of_all_and_of_none(tiny: TinyRun) -> None:
    (loss, none), *others = (step(tiny), step(tiny, ON), step(tiny, ON, SECOND))
    assert [look.layers for look in (none, *(look for _, look in others))] == [
        [False, False],
        [True, True],
        [True, False],
    ]
    for other, look in others:
        assert other == pytest.approx(loss, abs=1e-6)
        assert look.gradients.keys() == none.gradients.keys()
        for name, gradient in look.gradients.items():
            torch.testing.assert_close(gradient, none.gradients[name], rtol=1e-6, atol=1e-6)


def test_the_recipe_says_which_layers(tiny: TinyRun) -> None:
    found = [every(tiny.recipe(*words).recipe.training) for words in ((), (ON,), (ON, SECOND), (SECOND,))]
    assert found == [0, 1, 2, 0]


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5", "true"])
def test_a_number_of_layers_that_is_none_is_refused_before_the_run(number: str, tiny: TinyRun) -> None:
    with pytest.raises(UsageError, match="must be a whole number from 1") as refused:
        make_plan(tiny.recipe(SECOND.replace("=2", f"={number}")).recipe)
    assert refused.value.problems[0].code == "T001"


def test_a_reference_would_lose_it(tiny: TinyRun) -> None:
    with pytest.raises(UsageError, match="pass through the reference of objective dpo"):
        make_plan(tiny.recipe("training.objective=dpo", ON, SECOND).recipe)
