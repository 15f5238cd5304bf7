"""Supervised fine-tuning: the model learns the answers of conversations.

Usage: ``training: {objective: sft}`` in a recipe
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qlmm.data.sample import Example
from qlmm.training.objective import NO_BALANCING, WHOLE_ROWS, Objective, lazily

if TYPE_CHECKING:
    from qlmm.data.batching.collators import Collator
    from qlmm.data.encoding.encoder import Encoder

__all__ = ["OBJECTIVE"]


def _collator(rows: Sequence[Example], encoder: Encoder, args: Any) -> Collator:
    from qlmm.data.batching.collators import Collator

    return Collator(rows, encoder)


OBJECTIVE = Objective(
    rows="conversation",
    config=lazily("trl:SFTConfig"),
    trainer=lazily("qlmm.training.trainers.sft:SftTrainer"),
    collator=_collator,
    lacks="belongs to preferences, and objective sft has one loss",
    # A class that TRL's head does not fit learns from its own logits.
    through_head=False,
    fixed={**WHOLE_ROWS, "dataset_kwargs": {"skip_prepare_dataset": True}},
    defaults=NO_BALANCING,
    measures=("pictures",),
)
