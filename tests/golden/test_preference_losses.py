"""Every loss of DPO that a recipe can name has the value of its formula, in a step of qlmm's own trainer.

First the formulas have the values that were worked out by hand on one small vector. Then the trainer's logged loss is
compared with them on a tiny model, whose log-probabilities come from transformers alone.
"""

from __future__ import annotations

import pytest

from qlmm.training.objectives.dpo import LOSSES
from tests.golden.formulas import PAIR_LOSSES, SORTED_LOSSES, Pair, dpo
from tests.golden.one_step import ROWS, Step, one_step
from tests.runs import TinyRun

# Policy -10 and -14, reference -11 and -13, lengths 5 and 7, beta 0.1.
VECTOR = Pair(-10.0, -14.0, -11.0, -13.0, 5, 7)
VALUES = {
    "sigmoid": 0.598139,
    "sigmoid_norm": 0.676151,
    "hinge": 0.800000,
    "ipo": 21.688980,
    "robust": 0.573139,
    "nca_pair": 1.338793,
    "bco_pair": 1.288793,
    "sppo_hard": 32.000000,
    "apo_zero": 0.950042,
    "apo_down": 0.975145,
    "exo_pair": 2.422015,
    "sft": 2.000000,
}
SMOOTHED = {"robust": 0.1, "exo_pair": 1e-3}
MPO = {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}
# Losses that take the same settings share a step: their sum is compared, each with a weight of its own.
MIXTURES = [
    ({"sigmoid": 1.0, "hinge": 0.7, "ipo": 1.3, "sigmoid_norm": 0.4}, 0.0),
    ({"robust": 1.0, "exo_pair": 0.6, "aot": 1.7, "aot_unpaired": 0.3}, 0.2),
    ({"nca_pair": 1.0, "bco_pair": 0.3, "sppo_hard": 0.1}, 0.0),
    ({"apo_zero": 1.0, "apo_down": 0.4, "discopop": 2.0}, 0.0),
    (MPO, 0.0),
]


def pairs(step: Step) -> list[Pair]:
    """The rows' log-probabilities, as the oracle has them."""
    return [
        Pair(
            step.policy.total(row, row.chosen),
            step.policy.total(row, row.rejected),
            step.start.total(row, row.chosen),
            step.start.total(row, row.rejected),
            len(step.policy.tokens(row, row.chosen)),
            len(step.policy.tokens(row, row.rejected)),
        )
        for row in ROWS
    ]


@pytest.mark.parametrize("name", VALUES)
def test_a_formula_has_the_value_worked_out_by_hand(name: str) -> None:
    assert dpo(name, [VECTOR], smoothing=SMOOTHED.get(name, 0.0)) == pytest.approx(VALUES[name], abs=2e-6)


def test_weights_mix_losses_as_in_mixed_preference_optimisation() -> None:
    assert sum(weight * dpo(name, [VECTOR]) for name, weight in MPO.items()) == pytest.approx(2.736270, abs=2e-6)


def test_every_loss_of_trl_has_a_formula_and_is_trained() -> None:
    trained = {name for mixture, _ in MIXTURES for name in mixture}
    assert set(LOSSES) == PAIR_LOSSES.keys() | SORTED_LOSSES.keys() == trained


@pytest.mark.parametrize(("losses", "smoothing"), MIXTURES, ids=["+".join(one) for one, _ in MIXTURES])
def test_a_step_has_the_loss_of_its_formulas(losses: dict[str, float], smoothing: float, tiny: TinyRun) -> None:
    extra = {"label_smoothing": smoothing} if smoothing else {}
    step = one_step(tiny, "dpo", losses, beta=0.5, **extra)
    found = {name: dpo(name, pairs(step), beta=0.5, smoothing=smoothing) for name in losses}
    assert step.loss == pytest.approx(sum(losses[name] * loss for name, loss in found.items()), rel=1e-5)
    # No two losses of a mixture are so alike that one could stand in for another.
    assert len({round(loss, 3) for loss in found.values()}) == len(found)


def test_the_sigmoid_loss_is_asked_for_where_none_is_named(tiny: TinyRun) -> None:
    step = one_step(tiny, "dpo", seed=3)
    assert step.loss == pytest.approx(dpo("sigmoid", pairs(step)), rel=1e-5)
    assert step.metrics["rewards/margins"] == pytest.approx(
        sum(0.1 * pair.margin for pair in pairs(step)) / len(ROWS), abs=1e-4
    )
