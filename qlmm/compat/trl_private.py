"""Private names of TRL; `trl_experimental` has those that TRL itself calls unstable.

* ``add_fused_lm_head``, ``FusedCausalLMOutput``: log-probabilities of labels without logits of the vocabulary. Read
  from TRL 1.16. Public instead: both at the top of ``trl``.

Usage: ``add_fused_lm_head(model, outputs=("log_probs", "mean_logits"))``
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

__all__ = ["FusedCausalLMOutput", "add_fused_lm_head", "figures_kept", "prepared_inputs"]


def prepared_inputs(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch on the trainer's device, as its own training step has it.

    Read from transformers 5.23 (``Trainer._prepare_inputs``), on which every trainer of TRL 1.16 rests.
    Public instead: ``accelerate.utils.send_to_device``, which does not cast for DeepSpeed.
    """
    prepared: dict[str, Any] = trainer._prepare_inputs(batch)
    return prepared


@contextmanager
def figures_kept(trainer: Any) -> Iterator[None]:
    """Forget what a trainer of TRL counts and collects for its log while the block runs.

    Read from TRL 1.16 (``_metrics``, ``_total_train_tokens``; ``_stored_metrics`` of CPO and ORPO).
    Public instead: nothing.
    """
    names = ("_metrics", "_total_train_tokens", "_stored_metrics")
    before = {name: deepcopy(vars(trainer)[name]) for name in names if name in vars(trainer)}
    yield
    vars(trainer).update(before)
