"""KTO, ORPO and SimPO have the values their papers' formulas give on one small vector.

Policy log-probabilities -10 and -14, reference -11 and -13, lengths 5 and 7; for objectives on means per token, which
are equal there, -21 takes the place of -14 once more. The formulas are worked out by hand.
"""

from __future__ import annotations

import math
from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qlmm.model.numerics.precision import Precision
from qlmm.recipe.schema import OutputSection, TrainingSection
from qlmm.training.objectives.kto import KtoTrainer
from qlmm.training.objectives.orpo import CERTAIN, OrpoTrainer
from qlmm.training.objectives.simpo import SimpoTrainer
from qlmm.training.trl_settings import trainer_config
from tests.golden.test_preference_losses import POLICY, REFERENCE, said, spread

MASK = torch.cat([torch.zeros(2, 1), spread((1.0, 1.0)).ne(0)], dim=1).long()
UNEQUAL = (-10.0, -21.0)


def config(objective: Any, losses: dict[str, float], **extra: Any) -> Any:
    training = TrainingSection(objective=objective, losses=losses, extra=extra)
    return trainer_config(training, OutputSection(dir="x"), Precision("cpu", "fp32"), steps=1)


def alone() -> Any:
    """What a trainer asks of a single process."""
    return SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, autocast=nullcontext)


def judged(*, kl: float = 0.0, desirable: tuple[bool, bool] = (True, False), loss: str = "kto", **extra: Any) -> float:
    """KTO's loss where the comparisons moved by `kl` on average."""
    args = config("kto", {loss: 1.0}, **extra)
    trainer: Any = object.__new__(KtoTrainer)
    trainer.loss_type, trainer.calculate_KL, trainer.beta = args.loss_type, args.loss_type == "kto", args.beta
    trainer.desirable_weight, trainer.undesirable_weight = args.desirable_weight, args.undesirable_weight
    trainer.precompute_ref_logps, trainer.aux_loss_enabled, trainer._tp_size = True, False, 1
    trainer._metrics, trainer._total_train_tokens = {"train": defaultdict(list)}, 0
    trainer.accelerator, trainer.model = alone(), SimpleNamespace(training=True)
    own, compared = torch.ones_like(MASK), torch.full_like(MASK, 2)
    inputs = {
        "input_ids": own, "attention_mask": torch.ones_like(MASK), "completion_mask": MASK,
        "KL_input_ids": compared, "KL_attention_mask": torch.ones_like(MASK), "KL_completion_mask": MASK, "KL_also": {},
        "label": torch.tensor(desirable), "ref_logps": torch.tensor(REFERENCE),
        "ref_KL_logps": torch.tensor([-40.0, -50.0]),
    }  # fmt: skip
    moved = (-40.0 + 2 * kl, -50.0)

    def model(*, input_ids: torch.Tensor, **_: Any) -> Any:
        return said(moved if torch.equal(input_ids, compared) else POLICY)

    return float(trainer._compute_loss(model, inputs, False))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# 1 - sigmoid(beta (r - z)) for a desirable answer, 1 - sigmoid(beta (z - r)) for the other; r is +1 and -1 here.
@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({}, 0.475021),
        ({"kl": 0.5}, 0.475036),
        # A divergence is never below 0, however its estimate comes out.
        ({"kl": -5.0}, 0.475021),
        ({"desirable_weight": 2.0}, 0.712531),
        ({"undesirable_weight": 1.5, "beta": 0.5}, 0.471926),
        ({"desirable": (False, True)}, 0.524979),
        ({"desirable": (True, True)}, 0.500000),
        ({"loss": "apo_zero_unpaired"}, 0.475021),
        ({"loss": "apo_zero_unpaired", "desirable": (False, False)}, 0.500000),
    ],
)
def test_kto_is_equation_7_of_its_paper(settings: dict[str, Any], value: float) -> None:
    assert judged(**settings) == pytest.approx(value, abs=2e-6)


def test_the_golden_values_of_kto_are_those_of_the_formula() -> None:
    by_hand = [(1 - sigmoid(0.1 * (1 - 0.5))) / 2 + (1 - sigmoid(0.1 * (0.5 + 1))) / 2]
    by_hand += [(1 - sigmoid(0.5)) / 2 + 1.5 * (1 - sigmoid(0.5)) / 2]
    assert by_hand == pytest.approx([0.475036, 0.471926], abs=2e-6)


def of_pairs(kind: Any, objective: str, total: tuple[float, float], **extra: Any) -> tuple[torch.Tensor, Any]:
    """The loss of one pair, and what is logged with it."""
    args = config(objective, {}, **extra)
    trainer: Any = object.__new__(kind)
    trainer.beta, trainer.aux_loss_enabled, trainer.accelerator = args.beta, False, alone()
    if objective == "simpo":
        trainer.loss_type, trainer.cpo_alpha, trainer.alpha = args.loss_type, args.cpo_alpha, args.alpha
        trainer.simpo_gamma, trainer.label_smoothing = args.simpo_gamma, args.label_smoothing
    inputs = {"input_ids": torch.ones_like(MASK), "completion_mask": MASK, "rows": torch.tensor([0])}
    told: tuple[torch.Tensor, Any] = trainer.get_batch_loss_metrics(lambda **_: said(total), inputs)
    return told


@pytest.mark.parametrize(
    ("total", "extra", "value"),
    [
        (POLICY, {}, 2.069315),
        (UNEQUAL, {}, 2.028875),
        (UNEQUAL, {"beta": 1.0}, 2.288751),
    ],
)
def test_orpo_is_equation_6_of_its_paper(total: tuple[float, float], extra: dict[str, Any], value: float) -> None:
    loss, metrics = of_pairs(OrpoTrainer, "orpo", total, **extra)
    chosen, rejected = math.exp(total[0] / 5), math.exp(total[1] / 7)
    odds = (chosen / (1 - chosen)) / (rejected / (1 - rejected))
    by_hand = -math.log(chosen) - extra.get("beta", 0.1) * math.log(sigmoid(math.log(odds)))
    assert float(loss) == pytest.approx(by_hand, abs=2e-6)
    assert float(loss) == pytest.approx(value, abs=2e-6)
    # The likelihood is the chosen answer's alone: 10 nats over its 5 tokens.
    assert metrics["nll_loss"] == pytest.approx(2.0)
    assert (metrics["logps/chosen"], metrics["logps/rejected"]) == pytest.approx((total[0] / 5, total[1] / 7))


@pytest.mark.parametrize(
    ("total", "extra", "value"),
    [
        (POLICY, {}, 0.974077),
        (UNEQUAL, {}, 0.201413),
        (UNEQUAL, {"beta": 10.0, "simpo_gamma": 8.0}, 0.126928),
        (UNEQUAL, {"label_smoothing": 0.1}, 0.351413),
    ],
)
def test_simpo_is_equation_6_of_its_paper(total: tuple[float, float], extra: dict[str, Any], value: float) -> None:
    beta, gamma, smoothing = extra.get("beta", 2.0), extra.get("simpo_gamma", 0.5), extra.get("label_smoothing", 0.0)
    margin = beta * (total[0] / 5 - total[1] / 7) - gamma
    by_hand = -(1 - smoothing) * math.log(sigmoid(margin)) - smoothing * math.log(sigmoid(-margin))
    loss, _ = of_pairs(SimpoTrainer, "simpo", total, **extra)
    assert float(loss) == pytest.approx(by_hand, abs=2e-6)
    assert float(loss) == pytest.approx(value, abs=2e-6)


def test_an_answer_that_is_certain_leaves_orpo_a_number_and_a_gradient() -> None:
    trainer: Any = object.__new__(OrpoTrainer)
    trainer.beta, trainer.accelerator = 0.1, alone()
    for sure in (0.0, -1e-9, CERTAIN):
        chosen, rejected = torch.tensor([sure], requires_grad=True), torch.tensor([-1.0], requires_grad=True)
        loss = trainer.odds_ratio_loss(chosen, rejected)[0].sum()
        loss.backward()
        assert chosen.grad is not None
        assert rejected.grad is not None
        assert all(torch.isfinite(one).all() for one in (loss, chosen.grad, rejected.grad))
