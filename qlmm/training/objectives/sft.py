"""Supervised fine-tuning: the model learns the answers of conversations.

Usage: ``training: {objective: sft}`` in a recipe
"""

from __future__ import annotations

from qlmm.training.objective import NO_BALANCING, WHOLE_ROWS, Objective, collator, lazily

__all__ = ["OBJECTIVE"]

OBJECTIVE = Objective(
    rows="conversation",
    config=lazily("trl:SFTConfig"),
    trainer=lazily("qlmm.training.trainers.sft:SftTrainer"),
    collator=collator("Collator"),
    lacks="belongs to preferences, and objective sft has one loss",
    # A class that TRL's head does not fit learns from its own logits.
    through_head=False,
    fixed={**WHOLE_ROWS, **NO_BALANCING, "dataset_kwargs": {"skip_prepare_dataset": True}},
)
