"""A row as the model sees it, with what is learned: from the tensors of a training batch, not from the text.

Usage: ``for piece in traced(encoder, sample): print(piece.kind, piece.text)``
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from qlmm.data.encoding.encoder import IGNORED, Encoder
from qlmm.data.sample import Feedback, ImageRef, Sample

__all__ = ["Piece", "traced"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a row as the model sees it: given, learned, or a picture's visual tokens."""

    kind: Literal["given", "learned", "picture"]
    text: str
    tokens: int


def traced(encoder: Encoder, row: Sample | Feedback) -> list[Piece]:
    """A row as a training batch has it: text with what is learned, pictures as token counts."""
    if isinstance(row, Feedback):
        batch = encoder.completions([row])
        learned = batch["completion_mask"][0].bool()
    else:
        batch = encoder.batch([row])
        learned = batch["labels"][0] != IGNORED
    tokens = zip(batch["input_ids"][0].tolist(), learned.tolist(), strict=True)
    images = iter(row.images)
    pieces: list[Piece] = []
    for (picture, own), group in groupby(tokens, key=lambda one: (one[0] == encoder.slot_id, one[1])):
        stretch = [token for token, _ in group]
        if picture:
            pieces += _pictures(encoder, len(stretch), images)
        else:
            text = encoder.processor.tokenizer.decode(stretch)
            pieces.append(Piece("learned" if own else "given", text, len(stretch)))
    return pieces


def _pictures(encoder: Encoder, slots: int, images: Iterator[ImageRef]) -> Iterator[Piece]:
    """Neighbouring pictures, apart by the tokens that each takes."""
    while slots > 0:
        ref = next(images, None)
        taken = min(slots, encoder.slots([ref])) if ref is not None else slots
        yield Piece("picture", encoder.processor.image_token, taken)
        slots -= max(1, taken)
