"""Private names of TRL; `trl_experimental` has those that TRL itself calls unstable.

* ``add_fused_lm_head``, ``FusedCausalLMOutput``: log-probabilities of labels without logits of the vocabulary. Read
  from TRL 1.16. Public instead: both at the top of ``trl``.

Usage: ``add_fused_lm_head(model, outputs=("log_probs", "mean_logits"))``
"""

from __future__ import annotations

from typing import Any

from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

__all__ = ["FusedCausalLMOutput", "add_fused_lm_head", "prepared_inputs"]


def prepared_inputs(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch on the trainer's device, as its own training step has it.

    Read from transformers 5.23 (``Trainer._prepare_inputs``), on which every trainer of TRL 1.16 rests.
    Public instead: ``accelerate.utils.send_to_device``, which does not cast for DeepSpeed.
    """
    prepared: dict[str, Any] = trainer._prepare_inputs(batch)
    return prepared
