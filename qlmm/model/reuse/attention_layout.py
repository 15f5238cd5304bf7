"""Two answers in one row, each seeing the prompt and itself: a pair's pictures and question are computed once.

The model is given ``[prompt | chosen | rejected]`` as if it were one conversation, so that pictures find their places
and positions are counted as ever. At the door of the decoder the mask is cut, so that the rejected answer does not see
the chosen one, and positions of the rejected answer begin anew. Behind the last layer the hidden states of the answers
are taken out, in the layout of TRL's trainers, whose losses need not know.

Usage: ``prefix = SharedPrefix(base); with prefix.laid_out(batch["layout"]): model(**batch["packed"], labels=labels)``
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from qlmm.compat.transformers_private import attention_of

__all__ = ["SharedPrefix"]

# The forms of attention that take a mask of any shape.
MASKED_FREELY = ("sdpa", "eager")
# Kinds of layers, in transformers' words, that look at other tokens through a mask and in no other way.
MASKED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


class SharedPrefix:
    """Hooks on a model's decoder and backbone that do nothing until a layout is set.

    Attributes:
        objection: why the model's configuration says that it cannot be; None where it may.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self._layout: Mapping[str, torch.Tensor] | None = None
        decoder = base.get_decoder()
        self._dtype = base.dtype
        self._additive = attention_of(decoder.config) == "eager"
        self.objection = _objection(decoder.config)
        decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True)
        base.base_model.register_forward_hook(self._after_backbone)

    @contextmanager
    def laid_out(self, layout: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """For one call of the model: rows lie as ``qlmm.data.encoding.shared_prefix.packed`` says."""
        self._layout = layout
        try:
            yield
        finally:
            self._layout = None

    def _before_decoder(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._layout is None:
            return None
        embedded = kwargs.get("inputs_embeds")
        # A decoder that looks at pictures from within its layers is given tokens.
        tokens = ((args[0] if args else kwargs["input_ids"]) if embedded is None else embedded).shape[1]
        prompt, chosen = self._layout["prompt"], self._layout["chosen"]
        places = torch.arange(tokens, device=prompt.device)
        rejected = places >= (prompt + chosen)[:, None]
        shut = rejected[:, :, None] & ((places >= prompt[:, None]) & ~rejected)[:, None, :]
        mask = self._masked(kwargs.get("attention_mask"), shut[:, None])
        positions = _restarted(kwargs.get("position_ids"), prompt, chosen, places)
        return args, {**kwargs, "attention_mask": mask, "position_ids": positions}

    def _masked(self, mask: Any, shut: torch.Tensor) -> Any:
        """A decoder's mask, with what one answer must not see of the other shut.

        Args:
            mask: none, (rows, tokens), (rows, 1, tokens, tokens), or several of the last by kind of layer.
            shut: (rows, 1, tokens, tokens), True where a query must not see a key.
        """
        if isinstance(mask, Mapping):
            return {name: self._masked(one, shut) for name, one in mask.items()}
        if mask is not None and mask.dim() == 4:
            return mask & ~shut if mask.dtype == torch.bool else mask.masked_fill(shut, torch.finfo(mask.dtype).min)
        seen = ~shut & torch.ones_like(shut[0, 0]).tril()
        if mask is not None:
            # A padding token sees the row's start, so that no row of the mask is empty.
            seen = seen & mask.bool()[:, None, None, :]
        return torch.where(seen, 0.0, torch.finfo(self._dtype).min).to(self._dtype) if self._additive else seen

    def _after_backbone(self, backbone: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._layout is not None:
            hidden: torch.Tensor = output.last_hidden_state
            rows = torch.arange(len(hidden), device=hidden.device).repeat(2)[:, None]
            output.last_hidden_state = hidden[rows, self._layout["take"]]
        return output


def _objection(config: PreTrainedConfig) -> str | None:
    """What in a decoder's configuration stands against a mask of our own."""
    if attention_of(config) not in MASKED_FREELY:
        return "this form of attention takes no mask of its own (base attention is neither sdpa nor eager)"
    others = sorted(set(config.to_dict().get("layer_types") or ()) - MASKED_LAYERS)
    return f"no mask keeps one answer from another in layers of kind {', '.join(others)}" if others else None


def _restarted(
    positions: torch.Tensor | None, prompt: torch.Tensor, chosen: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """Positions (…, rows, tokens) with those of the rejected answer beginning where the chosen answer's do."""
    if positions is None:
        positions = places.expand(len(prompt), -1)
    positions = positions.expand(*positions.shape[:-2], len(prompt), -1)
    after = places - (prompt + chosen)[:, None]
    first = positions.gather(-1, prompt[:, None].expand(*positions.shape[:-1], 1))
    return torch.where(after >= 0, first + after, positions)
