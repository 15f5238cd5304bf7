"""The answer of a model to a conversation that ends with a question: for the report, ``qlmm ask`` and ``qlmm chat``.

Usage: ``with precision.autocast(): text = answer(model, encoder, sample, max_new_tokens=48)``
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn
from transformers import TextStreamer

from qlmm.data.media.images import decode
from qlmm.data.sample import ImageRef, Sample

__all__ = ["Prompter", "Streamer", "answer", "ends", "open_question", "thumbnail"]

THUMBNAIL_PIXELS = 256


class Prompter(Protocol):
    """What answering needs of the data layer's encoder."""

    @property
    def processor(self) -> Any:
        """The processor whose tokenizer turns ids back into text."""

    def prompt(self, sample: Sample) -> dict[str, torch.Tensor]:
        """The conversation as a batch of one, up to where the next answer begins."""


class Streamer(TextStreamer):
    """Hands an answer on while it is generated, in whole words.

    Args:
        tokenizer: the model's.
        write: is called with each piece of text.
    """

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write
        self._started = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take one piece, which transformers would print; blanks before the first word are left out."""
        piece = text if self._started else text.lstrip()
        if piece:
            self._started = True
            self._write(piece)


@torch.no_grad()
def answer(
    model: nn.Module,
    encoder: Prompter,
    sample: Sample,
    max_new_tokens: int,
    streamer: Streamer | None = None,
    *,
    draw: bool = False,
) -> str:
    """The model's next turn, without special tokens or outer blanks; the model's mode is put back afterwards.

    Call it under the run's autocast where trained weights are fp32 and the rest is not.

    Args:
        model: a causal vision-language model of transformers, adapter included.
        encoder: renders the conversation with the run's chat template.
        sample: a conversation; answers it holds are history, but the last one, where it ends with one, is not shown.
        max_new_tokens: where an answer is cut.
        streamer: receives the answer as it is generated.
        draw: draw each token from the model's distribution (as its own generation settings say) instead of taking
            the likeliest; the draw follows ``torch.manual_seed``.
    """
    tokenizer = encoder.processor.tokenizer
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in encoder.prompt(open_question(sample)).items()}
    was_training = model.training
    model.eval()
    try:
        generate: Any = model.generate
        ids = generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=draw,
            # Settings for drawing that a base brings along would only be warned about when nothing is drawn.
            **({} if draw else {"temperature": None, "top_p": None, "top_k": None}),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=ends(model, tokenizer.eos_token_id),
            use_cache=True,
            streamer=streamer,
        )
    finally:
        model.train(was_training)
    asked = inputs["input_ids"][0]
    # A decoder of its own returns the answer alone, all others the prompt before it.
    reply = ids[0, len(asked) :] if ids[0, : len(asked)].equal(asked) else ids[0]
    text: str = tokenizer.decode(reply, skip_special_tokens=True)
    return text.strip()


def open_question(sample: Sample) -> Sample:
    """The conversation up to its last question: a held-out row without the answer the model is to find."""
    answered = sample.turns[-1].role == "assistant"
    return replace(sample, turns=sample.turns[:-1]) if answered else sample


def thumbnail(ref: ImageRef, side: int = THUMBNAIL_PIXELS) -> bytes:
    """A picture as a PNG of at most ``side`` by ``side`` pixels, for the report.

    Raises:
        BadImage: when it cannot be decoded.
    """
    picture = decode(ref)
    picture.thumbnail((side, side))
    target = io.BytesIO()
    picture.save(target, format="PNG", optimize=True)
    return target.getvalue()


def ends(model: Any, token: int | None) -> list[int]:
    """Ids that end an answer: the tokenizer's, and those of the base, which may have an end of turn of its own."""
    known = model.generation_config.eos_token_id
    several = known if isinstance(known, list) else [known]
    return sorted({end for end in (*several, token) if end is not None})
