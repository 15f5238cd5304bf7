"""TRL's `ORPOTrainer` and `CPOTrainer` on a model in parts: pairs without a reference.

These tokenise text themselves and keep full logits of both sides. Here rows come from the encoder, and
log-probabilities from the same fused head as in TRL's other trainers; losses and metrics are TRL's.

Usage: ``trainer = CpoTrainer(peft_model, plan, callbacks=[monitor])``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel

from qlmm.compat.trl_experimental import CPOTrainer, ORPOTrainer
from qlmm.compat.trl_private import FusedCausalLMOutput, add_fused_lm_head
from qlmm.data.batching.collators import Batch, rows
from qlmm.data.encoding.encoder import IGNORED
from qlmm.training.plan import Plan
from qlmm.training.trainers.base import Masters, RowsForTrl
from qlmm.training.trainers.pairs import PairsTrainer

__all__ = ["CpoTrainer", "OrpoTrainer", "ReferenceFreeTrainer"]

# An answer that is certain has infinite odds, and no gradient. This log-probability is the highest that is counted.
CERTAIN = -1e-6


class _Numbers(list[dict[str, int]]):
    """Row numbers as a data set that TRL prepares: there is nothing to prepare."""

    def map(self, *args: Any, **settings: Any) -> _Numbers:
        return self


class ReferenceFreeTrainer(PairsTrainer):
    """Mixed in before a trainer of TRL whose loss takes mean log-probabilities of chosen and rejected answers."""

    aux_loss_enabled: bool
    _tokens = 0

    def rows_for_trl(self, plan: Plan) -> RowsForTrl:
        """Row numbers, and a tokenizer: TRL reads its padding token, which a processor lacks."""
        return _Numbers(rows(len(plan.train))), plan.encoder.processor.tokenizer

    def restore_masters(self, model: PeftModel, masters: Masters) -> None:
        """As for every objective; the processor is saved with checkpoints again."""
        super().restore_masters(model, masters)
        self.processing_class = self._plan.encoder.processor
        # Routers are never trained, so that there is nothing to balance between experts.
        self.aux_loss_enabled = False

    def check_loss_path(self, model: PeftModel, plan: Plan) -> None:
        """Give the model the fused head that TRL's other trainers bring along, and try it."""
        add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "mean_logits"))
        super().check_loss_path(model, plan)

    def loss(self, model: Any, inputs: Batch, outputs: bool, items: torch.Tensor | int | None) -> Any:
        """TRL's loss over pairs, with tokens counted."""
        if self.model.training:
            self._tokens += int(inputs["attention_mask"].sum())
        return super().loss(model, inputs, outputs, items)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log, with the tokens seen so far, as its other trainers have it."""
        super().log({**logs, "num_tokens": self._tokens}, start_time)

    def concatenated_forward(self, model: Callable[..., Any], batch: Batch) -> tuple[torch.Tensor, ...]:
        """What TRL's loss is made of, from one pass over both sides, the chosen ones first.

        Returns:
            Mean log-probability per answer token (pairs,) of chosen and of rejected answers; mean logits (answer
            tokens,) of both; mean negative log-likelihood (scalar) of the chosen answers' tokens.
        """
        given = {name: value for name, value in batch.items() if name not in ("completion_mask", "rows")}
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
        found: FusedCausalLMOutput = self.scored_by(model)(**given, labels=labels, fused_lm_head=True, use_cache=False)
        log_probs, learned = found.log_probs.float(), found.label_mask
        chosen, rejected = (log_probs.sum(dim=-1) / learned.sum(dim=-1)).chunk(2)
        logits = [half[mask] for half, mask in zip(found.mean_logits.chunk(2), learned.chunk(2), strict=True)]
        likelihood = log_probs.chunk(2)[0].sum() / learned.chunk(2)[0].sum()
        return chosen, rejected, *logits, -likelihood


class CpoTrainer(ReferenceFreeTrainer, CPOTrainer):
    """TRL's trainer, with log-probabilities from the fused head; its losses are a matter of settings."""


class OrpoTrainer(ReferenceFreeTrainer, ORPOTrainer):
    """TRL's trainer, with log-probabilities from the fused head.

    The likelihood is that of the chosen answer given its prompt, as in the paper's equation 6. TRL also counts the
    prompt's own tokens, which here are questions and the placeholders of pictures (decision 019).
    """

    def odds_ratio_loss(
        self, policy_chosen_logps: torch.Tensor, policy_rejected_logps: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """TRL's loss (pairs,) and what is logged with it; an answer that is certain has finite odds."""
        found: tuple[torch.Tensor, ...] = super().odds_ratio_loss(
            policy_chosen_logps.clamp(max=CERTAIN), policy_rejected_logps.clamp(max=CERTAIN)
        )
        return found
