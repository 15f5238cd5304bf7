"""A model's output head at supervised positions only.

TRL's fused head leaves the others out where Triton compiles; on a CPU it scores every position, a third of a step.

Usage: ``head = SupervisedHead(base); head.of(model)(**batch, labels=labels, fused_lm_head=True)``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from qlmm.compat.trl_private import FusedCausalLMOutput
from qlmm.data.encoding.encoder import IGNORED

__all__ = ["SupervisedHead"]


class SupervisedHead:
    """A hook behind a model's backbone that does nothing until a call through ``of``."""

    def __init__(self, base: PreTrainedModel) -> None:
        self._at: torch.Tensor | None = None
        self._hook = base.base_model.register_forward_hook(self._take)

    def of(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """A model as TRL calls it, with the output that TRL's head gives: zero at positions without a label."""

        def call(*, labels: torch.Tensor | None = None, **inputs: Any) -> Any:
            # Label smoothing takes logits of every position.
            if labels is None or not inputs.get("fused_lm_head"):
                return model(labels=labels, **inputs)
            targets = labels[:, 1:]
            at = targets != IGNORED
            if not at.any():
                return model(labels=labels, **inputs)
            self._at = at
            try:
                found = model(shift_labels=targets[at][None], **inputs)
            finally:
                self._at = None
            return _spread(found, at)

        return call

    def end(self) -> None:
        """Take the hook away."""
        self._hook.remove()

    def _take(self, backbone: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._at is not None:
            output.last_hidden_state = output.last_hidden_state[:, :-1][self._at][None]
        return output


def _spread(found: FusedCausalLMOutput, at: torch.Tensor) -> FusedCausalLMOutput:
    """Values (1, supervised positions) as (rows, tokens - 1)."""

    def spread(value: torch.Tensor) -> torch.Tensor:
        return value.new_zeros(at.shape).masked_scatter(at, value)

    values = {name: spread(value) for name, value in found.items() if value.shape == found.label_mask.shape}
    return FusedCausalLMOutput(**{**found, **values, "label_mask": at})
