"""Rows whose tokens do not all see each other: one mask mechanism for every way to lay rows out.

A collator names the segment of each token, which segments see which, and whose position a token takes. The model is
given such a row as if it were one conversation, so that its own code places pictures and counts positions. Hooks do the
rest: at the decoder's input they cut the mask and move positions, and behind the backbone they take hidden states out
in the order that the loss expects. Pairs that share their prompt are one layout (`qlmm.data.encoding.shared_prefix`).

Usage: ``hooks = LayoutHooks(base); with hooks.applied(layout, take): model(**batch["packed"], labels=labels)``
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from qlmm.compat.transformers_private import attention_of
from qlmm.model.reuse.tensor_tree import Arguments

__all__ = ["AttentionLayout", "LayoutHooks"]

# The forms of attention that take a mask of any shape.
MASKED_FREELY = ("sdpa", "eager")
# Kinds of layers, in transformers' words, that look at other tokens through a mask and in no other way.
MASKED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """Who sees whom in a batch of rows, on top of what the model's own mask allows.

    Attributes:
        segments: (rows, tokens), the segment that each token lies in.
        sees: (segments, segments), True where tokens of the first may look at tokens of the second.
        positions: (rows, tokens), the place in the row whose position a token takes; its own place changes nothing.
    """

    segments: torch.Tensor
    sees: torch.Tensor
    positions: torch.Tensor

    def hidden(self) -> torch.Tensor:
        """(rows, 1, tokens, tokens), True where a query must not see a key."""
        return ~self.sees[self.segments[:, :, None], self.segments[:, None, :]][:, None]

    def placed(self, positions: torch.Tensor | None) -> torch.Tensor:
        """A decoder's positions (…, rows, tokens), or those that it would count itself, moved."""
        rows, tokens = self.segments.shape
        if positions is None:
            positions = torch.arange(tokens, device=self.positions.device).expand(rows, -1)
        positions = positions.expand(*positions.shape[:-2], rows, tokens)
        return positions.gather(-1, self.positions.expand_as(positions))


class LayoutHooks:
    """Hooks on a model's decoder and backbone that do nothing until a layout is applied.

    Attributes:
        objection: what in the model's configuration rules a layout out; None where nothing does.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self._applied: tuple[AttentionLayout, torch.Tensor] | None = None
        decoder = base.get_decoder()
        self._dtype = base.dtype
        self._additive = attention_of(decoder.config) == "eager"
        self.objection = _objection(decoder.config)
        decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True)
        base.base_model.register_forward_hook(self._after_backbone)

    @contextmanager
    def applied(self, layout: AttentionLayout, take: torch.Tensor) -> Iterator[None]:
        """For one call of the model.

        ``take`` (k × rows, tokens) has the places whose hidden states the loss gets: the first of the k parts is taken
        from all rows in order, then the second, and so on.
        """
        self._applied = (layout, take)
        try:
            yield
        finally:
            self._applied = None

    def _before_decoder(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Arguments
    ) -> tuple[tuple[Any, ...], Arguments] | None:
        if self._applied is None:
            return None
        layout, _ = self._applied
        mask = self._masked(kwargs.get("attention_mask"), layout.hidden())
        return args, {**kwargs, "attention_mask": mask, "position_ids": layout.placed(kwargs.get("position_ids"))}

    def _masked(self, mask: Any, hidden: torch.Tensor) -> Any:
        """A decoder's mask without what the layout hides: (rows, 1, tokens, tokens), True where a key must not be seen.

        The mask is none, (rows, tokens), (rows, 1, tokens, tokens), or several of the last by kind of layer.
        """
        if isinstance(mask, Mapping):
            return {name: self._masked(one, hidden) for name, one in mask.items()}
        if mask is not None and mask.dim() == 4:
            return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
        seen = ~hidden & torch.ones_like(hidden[0, 0]).tril()
        if mask is not None:
            # A padding token sees the row's start, so that no row of the mask is empty.
            seen = seen & mask.bool()[:, None, None, :]
        return torch.where(seen, 0.0, torch.finfo(self._dtype).min).to(self._dtype) if self._additive else seen

    def _after_backbone(self, backbone: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._applied is not None:
            _, take = self._applied
            hidden: torch.Tensor = output.last_hidden_state
            rows = torch.arange(len(hidden), device=hidden.device).repeat(len(take) // len(hidden))[:, None]
            output.last_hidden_state = hidden[rows, take]
        return output


def _objection(config: PreTrainedConfig) -> str | None:
    if attention_of(config) not in MASKED_FREELY:
        return "this form of attention takes no mask of its own (base attention is neither sdpa nor eager)"
    others = sorted(set(config.to_dict().get("layer_types") or ()) - MASKED_LAYERS)
    return f"no mask keeps one answer from another in layers of kind {', '.join(others)}" if others else None
