"""Supervised fine-tuning: TRL's `SFTTrainer` on a model in parts.

Everything about the loss (fused head, token counting, accumulation) is TRL's.

Usage: ``trainer = SftTrainer(peft_model, plan, callbacks=[monitor])``
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerCallback
from trl import SFTTrainer

from qlmm.data.batching.collators import Collator
from qlmm.model.token_losses import has_backbone, token_losses
from qlmm.training.plan import Plan
from qlmm.training.trainers.base import PartsTrainer, masters_of
from qlmm.training.trl_settings import trainer_config

__all__ = ["TRAINER", "SftTrainer"]


class SftTrainer(PartsTrainer, SFTTrainer):
    """TRL's trainer, with what a vision-language model in parts needs."""

    def __init__(self, model: PeftModel, plan: Plan, *, callbacks: list[TrainerCallback]) -> None:
        numbers, masters = self.begin(plan), masters_of(model)
        SFTTrainer.__init__(
            self,
            model=model,
            args=trainer_config(plan.recipe.training, plan.recipe.output, plan.precision, steps=plan.facts.steps),
            train_dataset=numbers,
            processing_class=plan.processor,
            data_collator=Collator(plan.train, plan.encoder),
            callbacks=callbacks,
        )
        self.put_back(model, masters)
        self._fused = has_backbone(model.get_base_model()) and self.fused_head_agrees(self.data_collator([{"row": 0}]))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """TRL's loss through its fused head, or the same from the logits of a class that it does not fit."""
        if model.training:
            self.rest_frozen()
        if self._fused:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        losses = token_losses(model, inputs, labels)
        return losses.sum() / max(1, losses.numel() if num_items_in_batch is None else int(num_items_in_batch))


TRAINER = SftTrainer
