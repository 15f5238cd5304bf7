"""TRL's `KTOTrainer` on a model in parts.

Usage: ``trainer = KtoTrainer(peft_model, plan, callbacks=[monitor])``
"""

from __future__ import annotations

from typing import Any

import torch
from trl import KTOTrainer

from qlmm.data.batching.collators import Batch
from qlmm.training.trainers.reference import ReferenceTrainer

__all__ = ["KtoTrainer"]


class KtoTrainer(ReferenceTrainer, KTOTrainer):
    """TRL's trainer, with a reference that is exactly the start, and stays it."""

    _also: Batch = {}  # noqa: RUF012  # replaced by every batch, never changed

    def _compute_loss(self, model: torch.nn.Module, inputs: Batch, return_outputs: bool) -> Any:
        self._also = inputs.pop("KL_also", {})
        return super()._compute_loss(model, inputs, return_outputs)

    def _compute_kl_logps(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor | None:
        """Log-probabilities (rows,) of other rows' answers, with all that goes with these."""
        found: torch.Tensor | None = super()._compute_kl_logps(model, {**batch, **self._also})
        return found
