"""Odds ratio preference optimisation: the chosen answer, and that its odds are the higher ones (arXiv 2403.07691).

`training.extra.beta` is the paper's lambda. There is no reference.

Usage: ``training: {objective: orpo}`` in a recipe
"""

from __future__ import annotations

from qlmm.training.objective import OF_LIKELIHOOD, Objective, lazily, pair_collator

__all__ = ["OBJECTIVE"]

OBJECTIVE = Objective(
    rows="preference",
    config=lazily("qlmm.compat.trl_experimental:ORPOConfig"),
    trainer=lazily("qlmm.training.trainers.reference_free:OrpoTrainer"),
    collator=pair_collator,
    lacks="needs a reference, and objective orpo has none",
    names=frozenset({"beta"}),
    withheld=OF_LIKELIHOOD,
    positive=frozenset({"beta"}),
    passes=2,
    # The likelihood of the chosen answers is a mean over the tokens of a batch.
    separable=lambda training: False,
)
