"""TRL's `ORPOTrainer` on a model in parts.

The likelihood is that of the chosen answer given its prompt, as in the paper's equation 6; TRL also
counts the prompt's own tokens, which here are questions and the placeholders of pictures (decision 019).

Usage: ``trainer = OrpoTrainer(peft_model, plan, callbacks=[monitor])``
"""

from __future__ import annotations

import torch

from qlmm.compat.trl_experimental import ORPOTrainer
from qlmm.training.trainers.reference_free import ReferenceFreeTrainer

__all__ = ["OrpoTrainer"]

# An answer that is certain has infinite odds, and no gradient. This log-probability is the highest that is counted.
CERTAIN = -1e-6


class OrpoTrainer(ReferenceFreeTrainer, ORPOTrainer):
    """TRL's trainer, with log-probabilities from the fused head."""

    def odds_ratio_loss(
        self, policy_chosen_logps: torch.Tensor, policy_rejected_logps: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """TRL's loss (pairs,) and what is logged with it; an answer that is certain has finite odds."""
        found: tuple[torch.Tensor, ...] = super().odds_ratio_loss(
            policy_chosen_logps.clamp(max=CERTAIN), policy_rejected_logps.clamp(max=CERTAIN)
        )
        return found
