"""Simple preference optimisation: TRL's `CPOTrainer` with the loss of arXiv 2405.14734, on a model in parts.

The loss is -log sigmoid(beta (log p(chosen) - log p(rejected)) - gamma) of mean log-probabilities per answer token;
`training.extra` has `beta` and, as `simpo_gamma`, gamma itself: TRL divides it by beta and multiplies it again.

Usage: ``trainer = SimpoTrainer(peft_model, plan, callbacks=[monitor])``
"""

from __future__ import annotations

from qlmm.compat.trl_experimental import CPOTrainer
from qlmm.training.trainers.reference_free import ReferenceFreeTrainer

__all__ = ["TRAINER", "SimpoTrainer"]


class SimpoTrainer(ReferenceFreeTrainer, CPOTrainer):
    """TRL's trainer, with log-probabilities from the fused head."""


TRAINER = SimpoTrainer
