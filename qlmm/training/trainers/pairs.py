"""What every objective over pairs shares: how pairs are laid out, and what is computed once instead of several times.

TRL gives a model two rows per pair. Here a pair is one row that holds prompt and pictures once, where the model can
take that; each trainer proves it on rows of its own before the first step, and says so where it cannot.

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
from qlmm.training.plan import Plan
from qlmm.training.trainers.base import PartsTrainer

__all__ = ["PairsTrainer"]


class PairsTrainer(PartsTrainer):
    """Mixed in before a trainer of TRL that learns from pairs."""

    _layouts: LayoutHooks | None = None

    def lay_out_rows(self, model: PeftModel, plan: Plan) -> None:
        """Let pairs share their prompts, where the recipe and the model allow it."""
        if not self.reuses("prefix"):
            return
        layouts = LayoutHooks(model.get_base_model())
        why = self._objection(model, layouts, plan)
        if why is None:
            self._layouts = layouts
            self.data_collator = PackedCollator(plan.train, plan.encoder).named_like(self.data_collator)
        else:
            self.notes.append(f"pairs do not share their prompts: {why}")

    @property
    def shares_prefixes(self) -> bool:
        """Whether a pair is one row."""
        return self._layouts is not None

    def scored_by(self, model: Any) -> Callable[..., Any]:
        """A model as TRL calls it, for batches of either layout."""
        return _sharing(model, self._layouts) if self._layouts is not None else model

    @torch.no_grad()
    def _objection(self, model: PeftModel, layouts: LayoutHooks, plan: Plan) -> str | None:
        """Why pairs cannot share their prompts, tried on the longest, on one without and one with most pictures."""
        if layouts.objection is not None:
            return layouts.objection
        rounding = 5e-2 if self.args.bf16 or self.args.fp16 else 1e-4
        was_training = model.training
        model.eval()
        try:
            for row in _telling(plan):
                shared, plain = self._both_ways(model, layouts, plan, row)
                if not torch.allclose(shared, plain, rtol=rounding, atol=rounding):
                    worst = float((shared - plain).abs().max())
                    return f"log-probabilities would differ by {worst:.2g} (row {plan.train[row].origin})"
        except ModelError as error:
            return error.text
        finally:
            model.train(was_training)
        return None

    def _both_ways(
        self, model: PeftModel, layouts: LayoutHooks, plan: Plan, row: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of both answers' tokens, from one row and from two."""
        found = []
        for call, batch in (
            (_sharing(model, layouts), PackedCollator(plan.train, plan.encoder)([{"row": row}])),
            (model, PairCollator(plan.train, plan.encoder)([{"row": row}])),
        ):
            inputs = prepared_inputs(self, batch)
            mask, _ = inputs.pop("completion_mask"), inputs.pop("rows")
            labels = inputs["input_ids"].masked_fill(mask == 0, IGNORED)
            with self.accelerator.autocast():
                scores = call(**inputs, labels=labels, fused_lm_head=True, use_cache=False).log_probs
            found.append(scores[labels[:, 1:] != IGNORED])
        return found[0].float(), found[1].float()


def _sharing(model: Any, layouts: LayoutHooks) -> Callable[..., Any]:
    """A call of the model on packed rows that looks like one on TRL's."""

    def call(
        *, packed: Batch, layout: Batch, take: torch.Tensor, input_ids: Any, attention_mask: Any, **settings: Any
    ) -> Any:
        with layouts.applied(AttentionLayout(**layout), take):
            return model(**packed, **settings)

    return call


def _telling(plan: Plan) -> set[int]:
    """The rows on which a difference would show first: the longest, one without and one with most pictures."""
    rows = range(len(plan.train))
    # One row alone may hide a difference: a tiny random model with recurrent layers showed it on another row only.
    return {
        max(rows, key=lambda row: plan.lengths[row].total + plan.lengths[row].supervised),
        min(rows, key=lambda row: len(plan.train[row].images)),
        max(rows, key=lambda row: len(plan.train[row].images)),
    }
