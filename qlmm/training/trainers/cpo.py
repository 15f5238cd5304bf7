"""TRL's `CPOTrainer` on a model in parts; its losses are a matter of settings.

Usage: ``trainer = CpoTrainer(peft_model, plan, callbacks=[monitor])``
"""

from __future__ import annotations

from qlmm.compat.trl_experimental import CPOTrainer
from qlmm.training.trainers.reference_free import ReferenceFreeTrainer

__all__ = ["CpoTrainer"]


class CpoTrainer(ReferenceFreeTrainer, CPOTrainer):
    """TRL's trainer, with log-probabilities from the fused head."""
