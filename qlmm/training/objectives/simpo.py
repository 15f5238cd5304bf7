"""Simple preference optimisation: which of two answers is better, by means over tokens (arXiv 2405.14734).

The loss is -log sigmoid(beta (log p(chosen) - log p(rejected)) - gamma) of mean log-probabilities per answer token.
`training.extra` has `beta` and, as `simpo_gamma`, gamma itself: TRL divides it by beta and multiplies it again.

Usage: ``training: {objective: simpo, extra: {simpo_gamma: 1.0}}`` in a recipe
"""

from __future__ import annotations

from qlmm.training.objective import OF_LIKELIHOOD, Objective, lazily, pair_collator

__all__ = ["OBJECTIVE"]

OBJECTIVE = Objective(
    rows="preference",
    config=lazily("qlmm.compat.trl_experimental:CPOConfig"),
    trainer=lazily("qlmm.training.trainers.reference_free:CpoTrainer"),
    collator=pair_collator,
    lacks="needs a reference, and objective simpo has none",
    names=frozenset({"beta", "simpo_gamma", "label_smoothing"}),
    withheld=OF_LIKELIHOOD,
    positive=frozenset({"beta"}),
    passes=2,
    # SimPO is CPO without its likelihood term, on means over tokens.
    fixed={"loss_type": "simpo", "cpo_alpha": 0.0},
    # CPO's own 0.1 belongs to sums over tokens; the paper's lie from 2.0 to 10.
    defaults={"beta": 2.0, "simpo_gamma": 0.5},
)
