"""SFT, KTO, ORPO and SimPO have the losses their papers' formulas give, in a step of qlmm's own trainers.

First the formulas have the values that were worked out by hand on one small vector. Then each trainer's logged loss is
compared with them on a tiny model, whose log-probabilities come from transformers alone.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
import torch

from qlmm.training.trainers.reference_free import CERTAIN
from tests.golden.formulas import kto, odds_ratio, simpo
from tests.golden.one_step import ROWS, Step, one_step, trainer_for
from tests.runs import TinyRun

GAINS = ((1.0, True), (-1.0, False))
WEIGHTS = {"desirable_weight": 1.5, "undesirable_weight": 0.5}


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"kl": 0.0}, 0.475021),
        ({"kl": 0.5}, 0.475036),
        ({"kl": -5.0}, 0.475021),
        ({"kl": 0.0, "desirable": 2.0}, 0.712531),
        ({"kl": 0.0, "other": 1.5, "beta": 0.5}, 0.471926),
    ],
)
def test_the_formula_of_kto_has_the_values_worked_out_by_hand(settings: dict[str, float], value: float) -> None:
    assert kto(GAINS, **settings) == pytest.approx(value, abs=2e-6)


def test_the_formulas_of_orpo_and_simpo_have_the_values_worked_out_by_hand() -> None:
    assert 2 + 0.1 * odds_ratio(-2.0, -2.0) == pytest.approx(2.069315, abs=2e-6)
    assert 2 + 1.0 * odds_ratio(-2.0, -3.0) == pytest.approx(2.288751, abs=2e-6)
    assert simpo(-2.0, -3.0, beta=2.0, gamma=0.5) == pytest.approx(0.201413, abs=2e-6)
    assert simpo(-2.0, -3.0, beta=2.0, gamma=0.5, smoothing=0.1) == pytest.approx(0.351413, abs=2e-6)


def test_supervised_training_is_the_likelihood_per_token_of_the_batch(tiny: TinyRun) -> None:
    step = one_step(tiny, "sft", rows="sft")
    assert step.loss == pytest.approx(
        -float(torch.cat([step.policy.tokens(row, row.chosen) for row in ROWS]).mean()), rel=1e-5
    )


def judged(step: Step) -> tuple[list[tuple[float, bool]], float]:
    """How much likelier each answer has become, and how much likelier the other row's is after the same prompt."""
    answers = (ROWS[0].chosen, ROWS[1].rejected)
    own = [
        step.policy.total(row, answer) - step.start.total(row, answer)
        for row, answer in zip(ROWS, answers, strict=True)
    ]
    other = [
        step.policy.total(row, answer) - step.start.total(row, answer)
        for row, answer in zip(ROWS, reversed(answers), strict=True)
    ]
    return list(zip(own, (True, False), strict=True)), fmean(other)


@pytest.mark.parametrize(("seed", "likelier"), [(3, True), (2, False)])
def test_kto_is_equation_7_of_its_paper(seed: int, likelier: bool, tiny: TinyRun) -> None:
    """With answers to other prompts likelier than at the start, and with less likely ones, which count as 0."""
    step = one_step(tiny, "kto", rows="judged", seed=seed, beta=1.5, **WEIGHTS)
    gains, kl = judged(step)
    assert (kl > 0.2) is likelier
    assert (kl < -0.2) is not likelier
    assert step.loss == pytest.approx(kto(gains, kl=kl, beta=1.5, desirable=1.5, other=0.5), rel=1e-5)


def test_kto_without_a_comparison_is_its_formula_at_no_divergence(tiny: TinyRun) -> None:
    step = one_step(tiny, "kto", {"apo_zero_unpaired": 1.0}, rows="judged", seed=3)
    assert step.loss == pytest.approx(kto(judged(step)[0], kl=0.0), rel=1e-5)


def test_orpo_is_equation_6_of_its_paper(tiny: TinyRun) -> None:
    step = one_step(tiny, "orpo", beta=0.7, seed=3)
    likelihood = -float(torch.cat([step.policy.tokens(row, row.chosen) for row in ROWS]).mean())
    ratios = [odds_ratio(step.policy.mean(row, row.chosen), step.policy.mean(row, row.rejected)) for row in ROWS]
    assert step.loss == pytest.approx(likelihood + 0.7 * fmean(ratios), rel=1e-5)
    assert step.metrics["nll_loss"] == pytest.approx(likelihood, rel=1e-4)


@pytest.mark.parametrize(
    ("extra", "beta", "gamma", "smoothing"),
    [({}, 2.0, 0.5, 0.0), ({"beta": 10.0, "simpo_gamma": 3.0, "label_smoothing": 0.1}, 10.0, 3.0, 0.1)],
)
def test_simpo_is_equation_6_of_its_paper(
    extra: dict[str, Any], beta: float, gamma: float, smoothing: float, tiny: TinyRun
) -> None:
    step = one_step(tiny, "simpo", seed=3, **extra)
    means = [(step.policy.mean(row, row.chosen), step.policy.mean(row, row.rejected)) for row in ROWS]
    by_hand = fmean(simpo(*pair, beta=beta, gamma=gamma, smoothing=smoothing) for pair in means)
    assert step.loss == pytest.approx(by_hand, rel=1e-5)


def test_an_answer_that_is_certain_leaves_orpo_a_number_and_a_gradient(tiny: TinyRun) -> None:
    trainer = trainer_for(tiny, "orpo", {}, "pairs", {})
    for sure in (0.0, -1e-9, CERTAIN):
        chosen, rejected = torch.tensor([sure], requires_grad=True), torch.tensor([-1.0], requires_grad=True)
        loss = trainer.odds_ratio_loss(chosen, rejected)[0].sum()
        loss.backward()
        assert chosen.grad is not None
        assert rejected.grad is not None
        assert all(torch.isfinite(one).all() for one in (loss, chosen.grad, rejected.grad))
