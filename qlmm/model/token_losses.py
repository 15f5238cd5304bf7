"""The loss of each supervised token, from any model's own logits.

TRL's fused head needs a backbone that returns hidden states. Classes without one (BLIP-2) and encoder-decoder models,
which put their labels into the decoder, are trained with the loss below. Held-out losses are always computed here, so
that every model is measured in the same way.

Usage: ``nll = token_losses(model, inputs, labels)  # nats, one per supervised token``
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from qlmm.data.encoding.encoder import IGNORED

__all__ = ["evaluating", "has_backbone", "last_logits", "needs_pictures", "supervised", "token_losses"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients and no dropout until the block is left, even by an error; then the model's mode is put back."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def has_backbone(base: PreTrainedModel) -> bool:
    """Whether a model is a backbone with a head on top, whose hidden states stand beside the labels."""
    return base.base_model is not base and not base.config.is_encoder_decoder


def needs_pictures(base: PreTrainedModel) -> bool:
    """Whether the class cannot be called without a picture."""
    pictures = inspect.signature(type(base).forward).parameters.get("pixel_values")
    return pictures is not None and pictures.default is inspect.Parameter.empty


def token_losses(model: nn.Module, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood in nats of every supervised token, row after row; arguments as in :func:`supervised`."""
    logits, targets = supervised(model, inputs, labels)
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def supervised(
    model: nn.Module, inputs: dict[str, torch.Tensor], labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (supervised tokens, vocabulary) and targets (supervised tokens), row after row.

    Only positions that some row supervises go through the output head, where the class allows it: full logits of a
    7B model at 2,048 tokens would take gigabytes. Labels (rows, tokens) of an encoder-decoder model are the decoder's.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if base.config.is_encoder_decoder:
        return _at(model(**inputs, labels=labels).logits, labels)
    targets = labels[:, 1:]
    if not _takes(base, "logits_to_keep"):
        return _at(model(**inputs).logits[:, :-1], targets)
    keep = targets.ne(IGNORED).any(dim=0).nonzero().squeeze(-1)
    logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits
    return _at(logits, targets[:, keep])


def last_logits(model: nn.Module, inputs: dict[str, torch.Tensor], count: int) -> torch.Tensor:
    """Logits (rows, count, vocabulary) of the last positions; the first of the decoder's where there is one."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if base.config.is_encoder_decoder:
        first = base.config.get_text_config(decoder=True).decoder_start_token_id
        start = torch.full_like(inputs["input_ids"][:, :1], first)
        logits: torch.Tensor = model(**inputs, decoder_input_ids=start).logits
    elif _takes(base, "logits_to_keep"):
        logits = model(**inputs, logits_to_keep=count, use_cache=False).logits
    else:
        logits = model(**inputs).logits
    return logits[:, -count:]


def _at(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    learned = targets.ne(IGNORED)
    return logits[learned], targets[learned]


def _takes(base: PreTrainedModel, name: str) -> bool:
    return name in inspect.signature(type(base).forward).parameters
