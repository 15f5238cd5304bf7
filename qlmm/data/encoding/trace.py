"""A row as the model sees it, with what is learned: read from the tensors of a training batch, not from the text.

Usage: ``for piece in traced(encoder, sample): print(piece.kind, piece.text)``
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from qlmm.data.encoding.encoder import IGNORED, Encoder
from qlmm.data.sample import Feedback, ImageRef, Preference, Sample

if TYPE_CHECKING:
    import torch

__all__ = ["Piece", "TracedPair", "traced", "traced_pair"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a row as the model sees it: given, learned, or a picture's visual tokens."""

    kind: Literal["given", "learned", "picture"]
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class TracedPair:
    """The pieces of a preference: its prompt, and what follows it on each side."""

    prompt: list[Piece]
    chosen: list[Piece]
    rejected: list[Piece]


def traced(encoder: Encoder, row: Sample | Feedback) -> list[Piece]:
    """A row as a training batch has it, from its tensors: text with what is learned, pictures as token counts."""
    if isinstance(row, Feedback):
        judged = encoder.completions([row.sample])
        return _pieces(encoder, judged["input_ids"][0], judged["completion_mask"][0].bool(), row.images)
    batch = encoder.batch([row])
    return _pieces(encoder, batch["input_ids"][0], batch["labels"][0] != IGNORED, row.images)


def traced_pair(encoder: Encoder, pair: Preference) -> TracedPair:
    """A preference as a training batch has it, from its tensors; the prompt, the same on both sides, once."""
    batch = encoder.pairs([pair])
    sides = []
    for side in (0, 1):
        real = batch["attention_mask"][side].bool()
        sides.append((batch["input_ids"][side][real], batch["completion_mask"][side][real].bool()))
    starts = [int(answer.long().argmax()) for _, answer in sides]
    ids, learned = sides[0]
    prompt = _pieces(encoder, ids[: starts[0]], learned[: starts[0]], pair.images)
    chosen, rejected = (
        _pieces(encoder, ids[start:], answer[start:], ()) for start, (ids, answer) in zip(starts, sides, strict=True)
    )
    return TracedPair(prompt, chosen, rejected)


def _pieces(encoder: Encoder, ids: torch.Tensor, learned: torch.Tensor, shown: Sequence[ImageRef]) -> list[Piece]:
    """The pieces of one row, from its tokens and which of them are learned."""
    picture = encoder.slot_id
    tokens = [
        (token, "picture" if token == picture else "learned" if own else "given")
        for token, own in zip(ids.tolist(), learned.tolist(), strict=True)
    ]
    images = iter(shown)
    pieces: list[Piece] = []
    for kind, group in groupby(tokens, key=lambda one: one[1]):
        stretch = [token for token, _ in group]
        if kind == "picture":
            pieces += _pictures(encoder, len(stretch), images)
        else:
            text = encoder.processor.tokenizer.decode(stretch)
            pieces.append(Piece("learned" if kind == "learned" else "given", text, len(stretch)))
    return pieces


def _pictures(encoder: Encoder, slots: int, images: Iterator[ImageRef]) -> Iterator[Piece]:
    """Neighbouring pictures told apart by the tokens each takes."""
    while slots > 0:
        ref = next(images, None)
        taken = min(slots, encoder.slots([ref])) if ref is not None else slots
        yield Piece("picture", encoder.processor.image_token, taken)
        slots -= max(1, taken)
