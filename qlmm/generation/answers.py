"""Answers of a model to a conversation that ends with a question: the likeliest one, or several that are drawn.

Usage: ``with precision.autocast(): text = answer(model, encoder, sample, max_new_tokens=48)``
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TextStreamer

from qlmm.core.errors import RunError
from qlmm.data.media.images import decode
from qlmm.data.sample import ImageRef, Sample
from qlmm.model.numerics.finite import is_finite
from qlmm.model.token_losses import evaluating

__all__ = ["Prompter", "Streamer", "answer", "draw", "open_question", "thumbnail"]

THUMBNAIL_PIXELS = 256


class Prompter(Protocol):
    """What answering needs of the data layer's encoder."""

    @property
    def processor(self) -> Any:
        """The processor whose tokenizer turns ids back into text."""

    def prompt(self, sample: Sample) -> dict[str, torch.Tensor]:
        """The conversation as a batch of one, up to where the next answer begins."""


class Streamer(TextStreamer):
    """Gives an answer to `write` while it is generated, in whole words."""

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


class _Finite(LogitsProcessor):
    """Ends an answer when no next token is the likeliest: generation would take the first of the vocabulary."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Give back what came in; single tokens may be ruled out by minus infinity."""
        if not is_finite(scores.max(dim=-1).values):
            help = "answer in fp32, and check base and adapter with `qlmm verify`"
            raise RunError.one("G005", "the model's logits are not finite, so that there is no answer", help=help)
        return scores


def answer(
    model: nn.Module,
    encoder: Prompter,
    sample: Sample,
    max_new_tokens: int,
    streamer: Streamer | None = None,
    *,
    draw: bool = False,
) -> str:
    """The model's next turn, without special tokens or outer blanks; an answer at the sample's end is not shown.

    Call it under the run's autocast where trained weights are fp32 and the rest is not. `draw` draws each token as the
    base's generation settings ask for, by ``torch.manual_seed``; otherwise the likeliest token is taken.
    """
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": draw, "streamer": streamer}
    if not draw:
        # Settings for drawing that a base brings along would only be warned about when nothing is drawn.
        settings |= {"temperature": None, "top_p": None, "top_k": None}
    with evaluating(model):
        (text,) = _generated(model, encoder, sample, 1, eos_token_id=_ends(model, encoder), **settings)
    return text


def draw(
    model: nn.Module,
    encoder: Prompter,
    sample: Sample,
    count: int,
    *,
    temperature: float = 0.7,
    max_new_tokens: int = 256,
    seed: int = 0,
) -> list[str]:
    """Draw next turns of a model in evaluation mode; no setting but the temperature shapes the distribution."""
    eos = _ends(model, encoder)
    torch.manual_seed(seed)
    drawn = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    with _plain(model):
        return _generated(model, encoder, sample, count, eos_token_id=eos, max_new_tokens=max_new_tokens, **drawn)


def _generated(model: Any, encoder: Prompter, sample: Sample, count: int, **settings: Any) -> list[str]:
    """Answers to the sample's last question.

    The prompt is encoded once and repeated as a block: several pictures of a prompt then stay with their own row, which
    ``num_return_sequences`` would not see to.
    """
    tokenizer = encoder.processor.tokenizer
    device = next(model.parameters()).device
    prompt = encoder.prompt(open_question(sample))
    inputs = {name: tensor.to(device).repeat(count, *[1] * (tensor.ndim - 1)) for name, tensor in prompt.items()}
    look = LogitsProcessorList([_Finite()])
    ids = model.generate(
        **inputs, pad_token_id=tokenizer.pad_token_id, use_cache=True, logits_processor=look, **settings
    )
    asked = inputs["input_ids"]
    length = asked.shape[1]
    # A decoder of its own returns the answers alone, all others the prompt before them.
    replies = ids[:, length:] if ids[:, :length].equal(asked) else ids
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in replies]


@contextmanager
def _plain(model: Any) -> Iterator[None]:
    """The model without the generation settings of its checkpoint: a repetition penalty would shape the answers."""
    own = model.generation_config
    names = ("bos_token_id", "decoder_start_token_id")
    model.generation_config = GenerationConfig(**{name: own.to_dict().get(name) for name in names})
    try:
        yield
    finally:
        model.generation_config = own


def _ends(model: Any, encoder: Prompter) -> list[int]:
    """Ids that end an answer: the tokenizer's, and those of the base, which may have an end of turn of its own."""
    known = model.generation_config.eos_token_id
    several = known if isinstance(known, list) else [known]
    return sorted({end for end in (*several, encoder.processor.tokenizer.eos_token_id) if end is not None})


def open_question(sample: Sample) -> Sample:
    """The conversation up to its last question: a held-out row without the answer that the model is to find."""
    answered = sample.turns[-1].role == "assistant"
    return replace(sample, turns=sample.turns[:-1]) if answered else sample


def thumbnail(ref: ImageRef) -> bytes:
    """A picture as a PNG of at most 256 by 256 pixels; BadImage when it cannot be decoded."""
    picture = decode(ref)
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    target = io.BytesIO()
    picture.save(target, format="PNG", optimize=True)
    return target.getvalue()
