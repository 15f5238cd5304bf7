"""Passes without padding, for every objective whose passes all have the rows of the batch.

Whether a model computes the same that way is tried on rows of the run before the first step.

Usage: ``class PartsTrainer(UnpaddedTrainer): …``
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft import PeftModel

from qlmm.core.errors import ModelError
from qlmm.data.batching.collators import Batch
from qlmm.data.encoding.marked_processor import FAILURES
from qlmm.model.reuse.unpadded import Unpadded
from qlmm.model.token_losses import evaluating, token_losses
from qlmm.training.plan import Plan
from qlmm.training.trainers.pieces import PiecesTrainer

__all__ = ["UnpaddedTrainer", "telling"]


class UnpaddedTrainer(PiecesTrainer):
    """Mixed in before a trainer of TRL.

    Attributes:
        notes: what the user should know about how this run is computed.
    """

    args: Any
    data_collator: Any
    notes: list[str]
    _unpadded: Unpadded | None = None

    def cut_padding(self, model: PeftModel, plan: Plan) -> None:
        """Compute no padding, where the recipe asks for it, a pass has several rows, and the model allows it."""
        if not plan.recipe.training.packing or plan.recipe.training.rows_at_once == 1:
            return
        batch = self.data_collator([{"row": row} for row in sorted(telling(plan))])
        if self.row_mask(batch) is None:
            return
        unpadded = Unpadded(model.get_base_model())
        why = unpadded.objection or self._differs(model, unpadded, batch)
        if why is None:
            self._unpadded = unpadded
        else:
            unpadded.end()
            self.notes.append(f"rows of a pass are padded to the longest: {why}")

    @property
    def pads(self) -> bool:
        """Whether the language model computes padding."""
        return self._unpadded is None

    def _differs(self, model: PeftModel, unpadded: Unpadded, batch: Batch) -> str | None:
        """Why a model does not compute the same without padding."""
        rounding = 5e-2 if self.args.bf16 or self.args.fp16 else 1e-4
        try:
            with evaluating(model):
                theirs = self.scores(batch)
                with unpadded.rows(self._on_device(self.row_mask(batch))):
                    ours = self.scores(batch)
        except ModelError as error:
            return error.text
        except FAILURES as error:
            return f"its own code fails on rows that lie end to end ({type(error).__name__})"
        if torch.allclose(ours, theirs, rtol=rounding, atol=rounding):
            return None
        return f"losses would differ by {float((ours - theirs).abs().max()):.2g}"

    def scores(self, batch: Batch) -> torch.Tensor:
        """A number for each supervised token of a batch, in which two ways to compute it would differ."""
        inputs = {name: self._on_device(value) for name, value in batch.items() if name != "pictures"}
        labels = inputs.pop("labels")
        with self.accelerator.autocast():
            return token_losses(self.model, inputs, labels)

    def row_mask(self, inputs: Batch) -> torch.Tensor | None:
        """The mask (rows, tokens) that every pass of a batch has; None where there is none, or passes differ."""
        mask: torch.Tensor | None = inputs.get("attention_mask")
        return mask

    def around(self, inputs: Batch) -> AbstractContextManager[None]:
        """What a batch's forward and backward pass run in."""
        mask = self.row_mask(inputs) if self._unpadded is not None else None
        return nullcontext() if mask is None or self._unpadded is None else self._unpadded.rows(self._on_device(mask))

    def _on_device(self, value: Any) -> Any:
        return value.to(self.model.device) if isinstance(value, torch.Tensor) else value


def telling(plan: Plan) -> set[int]:
    """The rows on which a difference would show first: longest and shortest, one without and one with most pictures."""
    rows = plan.readable

    def length(row: int) -> int:
        return plan.lengths[row].total + plan.lengths[row].supervised

    def pictures(row: int) -> int:
        return len(plan.train[row].images)

    # One row alone may hide a difference: a tiny random model with recurrent layers showed it on another row only.
    return {max(rows, key=length), min(rows, key=length), min(rows, key=pictures), max(rows, key=pictures)}
