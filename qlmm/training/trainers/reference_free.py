"""Pairs without a reference: what objectives on mean log-probabilities per answer token share.

TRL's trainers for these tokenise text themselves and hold full logits of both sides. Here rows come from the encoder,
and log-probabilities from the same fused head as in TRL's other trainers; losses and metrics are TRL's.

Usage: ``class OrpoTrainer(ReferenceFreeTrainer, ORPOTrainer): …``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerCallback

from qlmm.compat.trl_private import FusedCausalLMOutput, add_fused_lm_head
from qlmm.data.batching.collators import PairCollator, rows
from qlmm.data.encoding.encoder import IGNORED
from qlmm.training.plan import Plan
from qlmm.training.trainers.base import masters_of
from qlmm.training.trainers.pairs import PairsTrainer
from qlmm.training.trl_settings import trainer_config

__all__ = ["ReferenceFreeTrainer"]


class _Numbers(list[dict[str, int]]):
    """Row numbers as a data set that TRL prepares: there is nothing to prepare."""

    def map(self, *args: Any, **settings: Any) -> _Numbers:
        return self


class ReferenceFreeTrainer(PairsTrainer):
    """Mixed in before a trainer of TRL whose loss takes mean log-probabilities of chosen and rejected answers."""

    aux_loss_enabled: bool

    def __init__(self, model: PeftModel, plan: Plan, *, callbacks: list[TrainerCallback]) -> None:
        self.begin(plan)
        masters, self._tokens = masters_of(model), 0
        super().__init__(  # type: ignore[call-arg]  # TRL's
            model=model,
            args=trainer_config(plan.recipe.training, plan.recipe.output, plan.precision, steps=plan.facts.steps),
            train_dataset=_Numbers(rows(len(plan.train))),
            # TRL asks it for its padding token, which a processor does not say.
            processing_class=plan.processor.tokenizer,
            data_collator=PairCollator(plan.train, plan.encoder),
            callbacks=callbacks,
        )
        self.processing_class = plan.processor
        # Routers are never trained, so that there is nothing to balance between experts.
        self.aux_loss_enabled = False
        self.put_back(model, masters)
        add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "mean_logits"))
        self.check_head(plan)
        self.see_once(model)
        self.lay_out(model, plan)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """TRL's loss over pairs."""
        if self.model.training:
            self.rest_frozen()
            self._tokens += int(inputs["attention_mask"].sum())
        return super().compute_loss(  # type: ignore[misc]  # Trainer's
            model, inputs, return_outputs, num_items_in_batch
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log, with the tokens seen so far, as its other trainers have it."""
        super().log({**logs, "num_tokens": self._tokens}, start_time)  # type: ignore[misc]  # Trainer's

    def pair_outputs(self, model: Callable[..., Any], inputs: dict[str, Any]) -> FusedCausalLMOutput:
        """What the fused head says of both sides: tensors (2 × pairs, tokens), the chosen sides first."""
        given = {name: value for name, value in inputs.items() if name not in ("completion_mask", "rows")}
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
        return self.scored_by(model)(**given, labels=labels, fused_lm_head=True, use_cache=False)

    def concatenated_forward(self, model: Callable[..., Any], batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """What TRL's loss is made of, from one pass over both sides.

        Returns:
            Mean log-probability per answer token (pairs,) of chosen and of rejected answers; mean logits (answer
            tokens,) of both; mean negative log-likelihood (scalar) of the chosen answers' tokens.
        """
        said = self.pair_outputs(model, batch)
        log_probs, learned = said.log_probs.float(), said.label_mask
        chosen, rejected = (log_probs.sum(dim=-1) / learned.sum(dim=-1)).chunk(2)
        logits = [half[mask] for half, mask in zip(said.mean_logits.chunk(2), learned.chunk(2), strict=True)]
        likelihood = log_probs.chunk(2)[0].sum() / learned.chunk(2)[0].sum()
        return chosen, rejected, *logits, -likelihood
