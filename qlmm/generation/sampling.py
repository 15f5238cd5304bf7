"""Several answers of a model to one question, drawn at once.

Usage: ``with precision.autocast(): texts = draw(model, encoder, sample, 10, Draw(temperature=0.7, seed=1))``
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from qlmm.data.sample import Sample
from qlmm.generation.answers import Prompter, ends, open_question

__all__ = ["Draw", "draw"]


@dataclass(frozen=True, slots=True)
class Draw:
    """How answers are drawn.

    Attributes:
        temperature: what logits are divided by; no other setting shapes the distribution.
        max_new_tokens: where an answer is cut.
        seed: decides what is drawn.
    """

    temperature: float = 0.7
    max_new_tokens: int = 256
    seed: int = 0


@torch.no_grad()
def draw(model: nn.Module, encoder: Prompter, sample: Sample, count: int, how: Draw) -> list[str]:
    """Draw ``count`` next turns of the model, without special tokens or outer blanks.

    The prompt is encoded once and repeated as a block. The several pictures of a prompt then stay with their own row,
    which ``num_return_sequences`` would not see to.

    Args:
        model: in evaluation mode, adapter included.
        encoder: renders the conversation.
        sample: a conversation; an answer at its end is not shown.
        count: answers wanted.
        how: temperature, length and seed.
    """
    tokenizer = encoder.processor.tokenizer
    device = next(model.parameters()).device
    prompt = encoder.prompt(open_question(sample))
    inputs = {name: tensor.to(device).repeat(count, *[1] * (tensor.ndim - 1)) for name, tensor in prompt.items()}
    torch.manual_seed(how.seed)
    eos = ends(model, tokenizer.eos_token_id)
    with _plain(model) as bare:
        ids = bare.generate(
            **inputs,
            max_new_tokens=how.max_new_tokens,
            do_sample=True,
            temperature=how.temperature,
            top_p=1.0,
            top_k=0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=eos,
            use_cache=True,
        )
    asked = inputs["input_ids"]
    length = asked.shape[1]
    # A decoder of its own returns the answers alone, all others the prompt before them.
    replies = ids[:, length:] if ids[:, :length].equal(asked) else ids
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in replies]


@contextmanager
def _plain(model: Any) -> Iterator[Any]:
    """The model without the generation settings of its checkpoint: a repetition penalty would shape the answers."""
    own = model.generation_config
    names = ("bos_token_id", "decoder_start_token_id")
    model.generation_config = GenerationConfig(**{name: own.to_dict().get(name) for name in names})
    try:
        yield model
    finally:
        model.generation_config = own
