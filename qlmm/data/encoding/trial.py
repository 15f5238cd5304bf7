"""What a processor does is found out by trying it on blank pictures, once, before any row is encoded.

Processors do not describe themselves: which token a picture becomes, how many of them, and whether rows may lack a
picture show only when they are run. `Findings` holds the answers as plain values.

Usage: ``findings = try_processor(MarkedProcessor(processor), Renderer(processor))``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from qlmm.compat.transformers_private import picture_tokens
from qlmm.core.errors import DataError, ModelError
from qlmm.data.encoding.chat_template import Renderer
from qlmm.data.encoding.marked_processor import FAILURES, HELP, MarkedProcessor
from qlmm.data.encoding.marked_tokenizer import marked

__all__ = ["Findings", "PictureTokens", "check_prompt", "claimed", "mask_of", "tried", "try_processor"]

# Two picture sizes that a processor is tried on: its own word for how many tokens they take must hold for both.
TRIED = ((97, 61), (224, 224))


@dataclass(frozen=True, slots=True)
class PictureTokens:
    """What a picture takes in a row: all its tokens, and those of them that its features go into."""

    tokens: int
    slots: int


@dataclass(frozen=True, slots=True)
class Findings:
    """What trying a processor showed.

    Attributes:
        slot_id: the token that features of pictures go into.
        by_row: whether it takes one list of pictures per row, or one for the whole batch.
        claims_hold: whether its own word for the tokens of a picture is right, so that none need be tried.
        alike: whether a picture takes as many tokens beside another as alone. LLaVA-OneVision cuts a picture into
            tiles only where it stands alone in a row.
        takes_text_only: whether rows may lack a picture, as far as the processor goes.
        takes_both: whether rows with and without a picture may stand in one batch.
    """

    slot_id: int
    by_row: bool
    claims_hold: bool
    alike: bool
    takes_text_only: bool
    takes_both: bool


def try_processor(processor: MarkedProcessor, renderer: Renderer) -> Findings:
    """Run the processor on blank pictures.

    Raises:
        ModelError: D031 when a picture adds nothing, or the processor does not find its place; D037 when it cannot be
            used for training.
    """
    try:
        slot_id = _slot_id(processor, renderer)
    except DataError:
        processor = processor.with_one_list()
        try:
            slot_id = _slot_id(processor, renderer)
        except DataError as error:
            message = f"the chat template does not show a picture: {error.text}"
            raise ModelError.one("D031", message, help=HELP) from error
    alone = [tried(processor, renderer, pixels, slot_id) for pixels in TRIED]
    text_only = _takes(processor, renderer, [0])
    return Findings(
        slot_id=slot_id,
        by_row=processor.by_row,
        claims_hold=alone == [claimed(processor, pixels) for pixels in TRIED],
        alike=alone[0] == tried(processor, renderer, TRIED[0], slot_id, together=True),
        takes_text_only=text_only,
        takes_both=text_only and _takes(processor, renderer, [1, 0]),
    )


def check_prompt(processor: MarkedProcessor, renderer: Renderer) -> None:
    """What a model is asked must stand before the answer it has learned.

    Raises:
        ModelError: D045 when template or processor end a prompt with something else.
    """
    rows, tensors = processor.run([marked(renderer.probe(pictures=1))], [[_blank(TRIED[0])]])
    _, asked = processor.run([marked(renderer.probe(pictures=1, prompt=True))], [[_blank(TRIED[0])]])
    learned = mask_of([row.learned for row in rows], tensors["input_ids"])[0].nonzero()
    before = tensors["input_ids"][0, : int(learned[0])] if len(learned) else tensors["input_ids"][0]
    if before.tolist() != asked["input_ids"][0].tolist():
        raise ModelError.one(
            "D045", "a prompt is not what stands before an answer: the model would be asked otherwise", help=HELP
        )


def claimed(processor: MarkedProcessor, pixels: tuple[int, int]) -> PictureTokens | None:
    """What the processor says a picture takes, without seeing one; None where it cannot tell."""
    width, height = pixels
    try:
        count = picture_tokens(processor.processor, width, height)
    except FAILURES:
        return None
    return PictureTokens(count, count)


def tried(
    processor: MarkedProcessor, renderer: Renderer, pixels: tuple[int, int], slot_id: int, *, together: bool = False
) -> PictureTokens:
    """What a blank picture of a size takes, alone in a row or beside another of its size.

    Raises:
        DataError: D039 when the processor refuses such a picture.
    """
    count = 2 if together else 1
    try:
        ids, text = _shown(processor, renderer, pixels, count)
    except DataError:
        if not together:
            raise
        # A processor that takes one picture a row.
        return tried(processor, renderer, pixels, slot_id)
    return PictureTokens((len(ids) - text.total()) // count, ids.count(slot_id) // count)


def mask_of(marks: Sequence[Sequence[bool]], ids: torch.Tensor) -> torch.Tensor:
    """Per token of a batch whether its row marks it; some processors put picture tokens before all rows."""
    before = ids.shape[1] - max(len(row) for row in marks)
    at = torch.zeros_like(ids, dtype=torch.bool)
    for number, row in enumerate(marks):
        at[number, before : before + len(row)] = torch.tensor(row, dtype=torch.bool)
    return at


def _slot_id(processor: MarkedProcessor, renderer: Renderer) -> int:
    """The token that pictures consist of: the one that a picture adds most of.

    Raises:
        ModelError: D031 when a picture adds nothing, or stands behind the text.
        DataError: D039 when the processor refuses the row.
    """
    ids, text = _shown(processor, renderer, TRIED[-1], 1)
    added = Counter(ids) - text
    if not added:
        raise ModelError.one("D031", "the chat template does not show a picture: one adds no token", help=HELP)
    slot = int(added.most_common(1)[0][0])
    answer = processor.read([marked(renderer.probe(pictures=1))])[0]
    after = len(ids) - 1 - ids[::-1].index(slot)
    if renderer.placeholder == "" and after > len(ids) - sum(answer.learned):
        kind = type(processor.processor).__name__
        raise ModelError.one("D031", f"{kind} puts pictures after the text: answers would not see them", help=HELP)
    return slot


def _shown(
    processor: MarkedProcessor, renderer: Renderer, pixels: tuple[int, int], count: int
) -> tuple[list[int], Counter[int]]:
    """Tokens of a question with blank pictures, and those of the same row that are not the placeholders'."""
    text = marked(renderer.probe(pictures=count))
    _, tensors = processor.run([text], [[_blank(pixels)] * count])
    tokenizer = processor.processor.tokenizer
    placeholder = tokenizer(renderer.placeholder, add_special_tokens=False)["input_ids"]
    real = tensors["input_ids"][0][tensors["attention_mask"][0].bool()].tolist()
    return real, Counter(processor.read([text])[0].ids) - Counter(placeholder * count)


def _takes(processor: MarkedProcessor, renderer: Renderer, pictures: Sequence[int]) -> bool:
    """Whether the processor takes a batch of rows with so many pictures each."""
    texts = [marked(renderer.probe(pictures=count)) for count in pictures]
    try:
        processor.run(texts, [[_blank(TRIED[0])] * count for count in pictures])
    except DataError:
        return False
    return True


def _blank(pixels: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", pixels, (127, 127, 127))
