"""What every objective over pairs shares: one row per pair, with prompt and pictures once, where the model takes that.

TRL gives a model two rows per pair. Whether one is enough is tried on rows of the run before the first step.

Usage: ``class DpoTrainer(PairsTrainer, DPOTrainer): …``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel

from qlmm.compat.trl_private import prepared_inputs
from qlmm.core.errors import ModelError
from qlmm.data.batching.collators import Batch, PackedCollator, PairCollator
from qlmm.data.encoding.encoder import IGNORED
from qlmm.model.reuse.attention_layout import AttentionLayout, LayoutHooks
from qlmm.model.token_losses import evaluating
from qlmm.training.plan import Plan
from qlmm.training.trainers.base import PartsTrainer
from qlmm.training.trainers.unpadded import telling

__all__ = ["PairsTrainer"]


class PairsTrainer(PartsTrainer):
    """Mixed in before a trainer of TRL that learns from pairs."""

    _layouts: LayoutHooks | None = None

    def lay_out_rows(self, model: PeftModel, plan: Plan) -> None:
        """Let pairs share their prompts, where the recipe and the model allow it."""
        if "prefix" not in plan.recipe.training.reuse:
            return
        layouts = LayoutHooks(model.get_base_model())
        why = self._objection(model, layouts, plan)
        if why is None:
            self._layouts = layouts
            collator = PackedCollator(plan.train, plan.encoder)
            collator.processor_digest = self.data_collator.processor_digest
            self.data_collator = collator
        else:
            self.notes.append(f"pairs do not share their prompts: {why}")

    @property
    def shares_prefixes(self) -> bool:
        """Whether a pair is one row."""
        return self._layouts is not None

    def scored_by(self, model: Any) -> Callable[..., Any]:
        """A model as TRL calls it, for batches of either layout."""
        return super().scored_by(_sharing(model, self._layouts) if self._layouts is not None else model)

    def row_mask(self, inputs: Batch) -> torch.Tensor | None:
        """The mask of the batch as the model is given it."""
        return super().row_mask(inputs.get("packed", inputs))

    def scores(self, batch: Batch) -> torch.Tensor:
        """Log-probabilities of both answers' tokens."""
        return self._log_probs(self.scored_by(self.model), batch)

    def _objection(self, model: PeftModel, layouts: LayoutHooks, plan: Plan) -> str | None:
        """Why pairs cannot share their prompts, tried on the longest, on one without and one with most pictures."""
        if layouts.objection is not None:
            return layouts.objection
        rounding = 5e-2 if self.args.bf16 or self.args.fp16 else 1e-4
        packed, plain = PackedCollator(plan.train, plan.encoder), PairCollator(plan.train, plan.encoder)
        try:
            with evaluating(model):
                for row in telling(plan):
                    ours = self._log_probs(_sharing(model, layouts), packed([{"row": row}]))
                    theirs = self._log_probs(model, plain([{"row": row}]))
                    if not torch.allclose(ours, theirs, rtol=rounding, atol=rounding):
                        worst = float((ours - theirs).abs().max())
                        return f"log-probabilities would differ by {worst:.2g} (row {plan.train[row].origin})"
        except ModelError as error:
            return error.text
        return None

    def _log_probs(self, call: Callable[..., Any], batch: Batch) -> torch.Tensor:
        """Log-probabilities of both answers' tokens."""
        inputs = prepared_inputs(self, batch)
        mask, _ = inputs.pop("completion_mask"), inputs.pop("rows")
        labels = inputs["input_ids"].masked_fill(mask == 0, IGNORED)
        with self.accelerator.autocast():
            scores: torch.Tensor = call(**inputs, labels=labels, fused_lm_head=True, use_cache=False).log_probs
        return scores[labels[:, 1:] != IGNORED].float()


def _sharing(model: Any, layouts: LayoutHooks) -> Callable[..., Any]:
    """A call of the model on packed rows that looks like one on TRL's."""

    def call(
        *, packed: Batch, layout: Batch, take: torch.Tensor, input_ids: Any, attention_mask: Any, **settings: Any
    ) -> Any:
        with layouts.applied(AttentionLayout(**layout), take):
            return model(**packed, **settings)

    return call
