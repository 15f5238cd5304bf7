"""Kahneman-Tversky optimisation: TRL's `KTOTrainer` on a model in parts (arXiv 2402.01306).

Learns from answers judged one by one. The reference is what the run started from.

Usage: ``trainer = KtoTrainer(peft_model, plan, callbacks=[monitor])``
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerCallback
from trl import KTOTrainer

from qlmm.data.batching.feedback_collator import FeedbackCollator
from qlmm.training.plan import Plan
from qlmm.training.trainers.base import masters_of
from qlmm.training.trainers.reference import ReferenceTrainer
from qlmm.training.trl_settings import trainer_config

__all__ = ["TRAINER", "KtoTrainer"]


class KtoTrainer(ReferenceTrainer, KTOTrainer):
    """TRL's trainer, with a reference that is exactly the start, and stays it."""

    def __init__(self, model: PeftModel, plan: Plan, *, callbacks: list[TrainerCallback]) -> None:
        numbers, masters = self.begin(plan), masters_of(model)
        self.note_still(model)
        self._also: dict[str, torch.Tensor] = {}
        args = trainer_config(plan.recipe.training, plan.recipe.output, plan.precision, steps=plan.facts.steps)
        KTOTrainer.__init__(
            self,
            model=model,
            args=args,
            # TRL takes a data set for one with pictures by its columns, and would tokenise any other.
            train_dataset=numbers.add_column("images", [None] * len(numbers)),
            processing_class=plan.processor,
            data_collator=FeedbackCollator(plan.train, plan.encoder, kl=args.loss_type == "kto"),
            callbacks=callbacks,
        )
        self.put_back(model, masters)
        self.fix_reference(model)
        self.check_head(plan)
        self.see_once(model)

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        self._also = inputs.pop("KL_also", {})
        return super()._compute_loss(model, inputs, return_outputs)

    def _compute_kl_logps(self, model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor | None:
        """Log-probabilities (rows,) of other rows' answers, with all that goes with these."""
        found: torch.Tensor | None = super()._compute_kl_logps(model, {**batch, **self._also})
        return found


TRAINER = KtoTrainer
