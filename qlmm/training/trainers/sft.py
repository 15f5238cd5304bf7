"""TRL's `SFTTrainer` on a model in parts; all of the loss (fused head, token counts) is TRL's.

Usage: ``trainer = SftTrainer(peft_model, plan, callbacks=[monitor])``
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from trl import SFTTrainer

from qlmm.data.batching.collators import Batch
from qlmm.model.token_losses import has_backbone, token_losses
from qlmm.training.plan import Plan
from qlmm.training.trainers.base import PartsTrainer

__all__ = ["SftTrainer"]


class SftTrainer(PartsTrainer, SFTTrainer):
    """TRL's trainer, with what a vision-language model in parts needs."""

    def check_loss_path(self, model: PeftModel, plan: Plan) -> None:
        """Use TRL's fused head where it gives this class's own loss, and the class's own logits elsewhere."""
        batch = self.data_collator([{"row": plan.readable[0]}])
        self._fused = has_backbone(model.get_base_model()) and self.fused_head_agrees(batch)

    def loss(self, model: Any, inputs: Batch, outputs: bool, items: torch.Tensor | int | None) -> Any:
        """TRL's loss through its fused head, or the same from the logits of a class that it does not fit."""
        if self._fused:
            return super().loss(self.scored_by(model), inputs, outputs, items)
        labels = inputs.pop("labels")
        losses = token_losses(model, inputs, labels)
        return losses.sum() / max(1, losses.numel() if items is None else int(items))
