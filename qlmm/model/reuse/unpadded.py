"""A decoder that computes no padding: inside it, the real tokens of all rows lie end to end.

The model builds embeddings, positions and masks on the padded batch, as it always does. At the decoder's input a hook
keeps the real tokens of every tensor that has one entry per token; attention takes them row by row; behind the decoder
a hook puts padding back. So collators, labels and losses know nothing of it, and neither does a model's own code for
pictures. transformers' own packing goes by positions that restart, which M-RoPE and masks of whole pictures have not.

Usage: ``unpadded = Unpadded(base); with unpadded.rows(batch["attention_mask"]): model(**batch).loss.backward()``
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedConfig, PreTrainedModel

from qlmm.compat.transformers_private import attention_by, attention_of
from qlmm.core.errors import ModelError
from qlmm.model.reuse.tensor_tree import Arguments

__all__ = ["Unpadded"]

# Kinds of layers, in transformers' words, that a row's own tokens and a window tell all about.
BY_ROW = {"full_attention", "sliding_attention"}
# Those that carry a state from token to token, and what of such a layer does: it alone is given padded rows.
MIXERS = {"linear_attention": "linear_attn", "conv": "conv"}
# What some kinds of attention add to their scores.
OTHER_TERMS = ("softcap", "s_aux", "position_bias")


@dataclass(frozen=True, slots=True)
class _Rows:
    """Which tokens of a padded batch are real.

    Attributes:
        mask: as the model is given it, (rows, tokens).
        real: (rows, tokens), True for real tokens.
        edges: where each row begins among the real tokens, and where the last one ends.
        places: for each row, where in it its real tokens are.
    """

    mask: torch.Tensor
    real: torch.Tensor
    edges: list[int]
    places: list[torch.Tensor]

    @classmethod
    def of(cls, mask: torch.Tensor) -> _Rows:
        real = mask.bool()
        edges = [0, *real.sum(dim=1).cumsum(dim=0).tolist()]
        return cls(mask, real, edges, [row.nonzero().squeeze(-1) for row in real])

    def kept(self, value: Any) -> Any:
        """A decoder's argument without padding: (rows, tokens, …) becomes (1, real tokens, …)."""
        by_token = isinstance(value, torch.Tensor) and value.shape[:2] == self.real.shape
        return value[self.real][None] if by_token else value

    def positions(self, given: torch.Tensor | None) -> torch.Tensor:
        """A decoder's positions (…, rows, tokens), or those that it would count itself, without padding."""
        if given is None:
            given = torch.arange(self.real.shape[1], device=self.real.device)[None]
        given = given.expand(*given.shape[:-2], *self.real.shape)
        return given[..., self.real][..., None, :]

    def padded(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (1, real tokens, width) as (rows, tokens, width), zero where there is padding."""
        room = hidden.new_zeros(*self.real.shape, hidden.shape[-1])
        return room.masked_scatter(self.real[..., None], hidden)

    def padded_again(self, value: Any) -> Any:
        """An argument of a mixer: what is (1, real tokens, width) becomes (rows, tokens, width)."""
        by_token = isinstance(value, torch.Tensor) and value.shape[:2] == (1, self.edges[-1]) and value.dim() == 3
        return self.padded(value) if by_token else value


class Unpadded:
    """Hooks on a decoder that do nothing until rows are named.

    Attributes:
        objection: what in the model's configuration rules it out; None where nothing does.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        decoder: Any = base.get_decoder()
        mixers = _mixers(decoder)
        self.objection = _objection(base, decoder.config, mixers)
        self._config: PreTrainedConfig = decoder.config
        self._rows: _Rows | None = None
        self._hooks = [
            base.register_forward_pre_hook(self._same_rows, with_kwargs=True),
            decoder.register_forward_pre_hook(self._enter, with_kwargs=True),
            decoder.register_forward_hook(self._leave),
            *(mixer.register_forward_pre_hook(self._pad_again, with_kwargs=True) for mixer in mixers if mixer),
            *(mixer.register_forward_hook(self._cut_again) for mixer in mixers if mixer),
        ]

    @contextmanager
    def rows(self, mask: torch.Tensor) -> Iterator[None]:
        """For passes, forward and backward, of one batch with this mask (rows, tokens).

        Backward belongs to it, since checkpointed layers attend again there. Without padding nothing changes.
        """
        if bool(mask.all()):
            yield
            return
        self._rows = _Rows.of(mask)
        try:
            with attention_by(self._config, self._attend):
                yield
        finally:
            self._rows = None

    def end(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def _same_rows(self, base: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
        """Refuse a batch with other padding than was named: its rows would see each other."""
        if self._rows is None:
            return
        given = kwargs.get("attention_mask")
        if given is None or given.shape != self._rows.mask.shape or not torch.equal(given, self._rows.mask):
            raise ModelError.one("M055", "a batch was given to the model with another mask than its rows have")

    def _enter(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Arguments
    ) -> tuple[tuple[Any, ...], Arguments] | None:
        if self._rows is None:
            return None
        embedded = kwargs.get("inputs_embeds")
        given = embedded if embedded is not None else kwargs.get("input_ids")
        if args or given is None or given.shape[:2] != self._rows.real.shape:
            raise ModelError.one("M055", "the decoder is given other tokens than the rows have")
        kept = {name: self._rows.kept(value) for name, value in kwargs.items()}
        kept["position_ids"] = self._rows.positions(kwargs.get("position_ids"))
        kept["attention_mask"] = _own_mask(kwargs.get("attention_mask"), given.device)
        return args, kept

    def _leave(self, decoder: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._rows is not None:
            if "last_hidden_state" not in output:
                raise ModelError.one("M055", "the decoder gives logits and no hidden states")
            output.last_hidden_state = self._rows.padded(output.last_hidden_state)
        return output

    def _pad_again(
        self, mixer: nn.Module, args: tuple[Any, ...], kwargs: Arguments
    ) -> tuple[tuple[Any, ...], Arguments] | None:
        if self._rows is None:
            return None
        padded = {name: self._rows.padded_again(value) for name, value in kwargs.items()}
        if "attention_mask" in kwargs:
            padded["attention_mask"] = self._rows.mask
        return tuple(map(self._rows.padded_again, args)), padded

    def _cut_again(self, mixer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._rows is None:
            return output
        return tuple(map(self._rows.kept, output)) if isinstance(output, tuple) else self._rows.kept(output)

    def _attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        sliding_window: int | None = None,
        **settings: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention of each row to itself: (1, real tokens, heads, width), and no weights, as transformers has it."""
        rows = self._rows
        if rows is None or len(query) != 1 or not query.shape[2] == key.shape[2] == rows.edges[-1]:
            raise ModelError.one("M055", "attention is given other tokens than the rows have")
        if any(settings.get(term) is not None for term in OTHER_TERMS):
            raise ModelError.one("M055", "this attention has a term that row by row is not known")
        stated = settings.get("is_causal")
        causal = vars(module).get("is_causal", True) if stated is None else stated
        how = {"dropout_p": settings.get("dropout", 0.0), "scale": settings.get("scaling")}
        grouped, found = query.shape[1] != key.shape[1], []
        for row, (first, end) in enumerate(pairwise(rows.edges)):
            seen = _seen(attention_mask, row, rows.places[row], sliding_window)
            q, k, v = (one[:, :, first:end] for one in (query, key, value))
            alone = causal and seen is None
            found.append(scaled_dot_product_attention(q, k, v, seen, is_causal=alone, enable_gqa=grouped, **how))
        return torch.cat(found, dim=2).transpose(1, 2), None


def _own_mask(given: Any, device: torch.device) -> Any:
    """A mask that a model prepared (rows, 1, tokens, tokens), by kind of layer or not, is kept whole and read by row.

    Where it prepared none, one with a single entry keeps the decoder from making a mask for one long row.
    """
    if isinstance(given, Mapping):
        return {name: _own_mask(one, device) for name, one in given.items()}
    if given is not None and given.dim() == 4:
        return given
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def _seen(mask: torch.Tensor | None, row: int, places: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """What a row's tokens see, (1, 1, tokens, tokens) or (tokens, tokens); None for everything before them."""
    if mask is not None and mask.shape[-1] > 1:
        return mask[row : row + 1, :, places][..., places]
    if window is None or len(places) <= window:
        return None
    at = torch.arange(len(places), device=places.device)
    return (at[:, None] >= at) & (at[:, None] - at < window)


def _kinds(config: PreTrainedConfig) -> list[str]:
    """The kind of each layer, where a configuration has several."""
    return list(config.to_dict().get("layer_types") or ())


def _mixers(decoder: Any) -> list[nn.Module | None]:
    """The mixers of a decoder's layers that carry a state; None where a layer has none of that name."""
    layers = dict(decoder.named_children()).get("layers", ())
    kinds = zip(layers, _kinds(decoder.config), strict=False)
    return [dict(layer.named_children()).get(MIXERS[kind]) for layer, kind in kinds if kind in MIXERS]


def _objection(base: PreTrainedModel, config: PreTrainedConfig, mixers: list[nn.Module | None]) -> str | None:
    if base.config.is_encoder_decoder:
        return "its decoder does not read the rows themselves"
    if attention_of(config) != "sdpa":
        return "base attention is not sdpa"
    kinds = _kinds(config)
    others = sorted(set(kinds) - BY_ROW - MIXERS.keys())
    if not others and None in mixers:
        others = sorted(set(kinds) & MIXERS.keys())
    return f"layers of kind {', '.join(others)} carry something from row to row" if others else None
