"""What a processor does with pictures, found out by trying it on blank ones, once, before any row is encoded.

Processors do not describe themselves. Which token a picture becomes, how many of them, and whether rows may lack a
picture show only when they are run.

Usage: ``Trial(MarkedProcessor(processor), Renderer(processor)).picture((640, 480)).tokens``
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from qlmm.compat.transformers_private import picture_tokens
from qlmm.core.errors import DataError, ModelError
from qlmm.data.encoding.chat_template import Renderer
from qlmm.data.encoding.marked_processor import FAILURES, HELP, MarkedProcessor
from qlmm.data.encoding.marked_tokenizer import MarkedRow, marked

if TYPE_CHECKING:
    import torch

__all__ = ["PictureTokens", "Trial"]

# Two picture sizes that a processor is tried on: its own count of their tokens must be right for both.
TRIED = ((97, 61), (224, 224))


@dataclass(frozen=True, slots=True)
class PictureTokens:
    """What a picture takes in a row: all its tokens, and those of them that its features go into."""

    tokens: int
    slots: int


class Trial:
    """A processor that was tried; `Encoder` documents what was found."""

    def __init__(self, processor: MarkedProcessor, renderer: Renderer) -> None:
        """Run the processor on blank pictures, in one list where it refuses one list per row.

        Raises:
            ModelError: D031 for pictures that add nothing or have no place; D037 for a processor not fit for training.
        """
        self.processor, self.renderer = processor, renderer
        tokenizer = processor.processor.tokenizer
        self.placeholder: list[int] = tokenizer(renderer.placeholder, add_special_tokens=False)["input_ids"]
        try:
            self.slot_id = self._slot_id()
        except DataError:
            processor.by_row = False
            try:
                self.slot_id = self._slot_id()
            except DataError as error:
                message = f"the chat template does not show a picture: {error.text}"
                raise ModelError.one("D031", message, help=HELP) from error
        alone = [self._tried(pixels) for pixels in TRIED]
        # Whether the processor's own count is right, so that no size need be tried.
        self._counts = alone == [self._counted(pixels) for pixels in TRIED]
        # LLaVA-OneVision cuts a picture into tiles only where it stands alone in a row.
        self._alike = alone[0] == self._tried(TRIED[0], 2)
        self.takes_text_only = self._takes(0)
        self.takes_both = self.takes_text_only and self._takes(1, 0)
        self._sizes: dict[tuple[tuple[int, int], bool], PictureTokens] = {}

    def picture(self, pixels: tuple[int, int], *, together: bool = False) -> PictureTokens:
        """What a picture of (width, height) takes, alone in a row or together with others; D039 where it is refused."""
        together = together and not self._alike
        if (pixels, together) not in self._sizes:
            counted = self._counted(pixels) if self._counts and not together else None
            self._sizes[pixels, together] = counted or self._tried(pixels, 2 if together else 1)
        return self._sizes[pixels, together]

    def check_prompt(self) -> None:
        """ModelError D045 unless a prompt is what stands before the answer that a model has learned."""
        (row,), answered = self._run(1)
        _, asked = self._run(1, prompt=True)
        before = row.learned.index(True) if True in row.learned else len(row.learned)
        if answered["input_ids"][0, :before].tolist() != asked["input_ids"][0].tolist():
            message = "a prompt is not what stands before an answer: the model would be asked otherwise"
            raise ModelError.one("D045", message, help=HELP)

    def _counted(self, pixels: tuple[int, int]) -> PictureTokens | None:
        """What the processor reports that a picture takes, without seeing one; None where it cannot."""
        try:
            count = picture_tokens(self.processor.processor, *pixels)
        except FAILURES:
            return None
        return PictureTokens(count, count)

    def _tried(self, pixels: tuple[int, int], count: int = 1) -> PictureTokens:
        """What a blank picture takes in a row of so many."""
        try:
            ids, text = self._shown(pixels, count)
        except DataError:
            if count == 1:
                raise
            return self._tried(pixels)  # a processor that takes one picture a row
        return PictureTokens((len(ids) - text.total()) // count, ids.count(self.slot_id) // count)

    def _slot_id(self) -> int:
        """The token that pictures consist of: the one that a picture adds most of."""
        ids, text = self._shown(TRIED[-1], 1)
        added = Counter(ids) - text
        if not added:
            raise ModelError.one("D031", "the chat template does not show a picture: one adds no token", help=HELP)
        slot = int(added.most_common(1)[0][0])
        (answer,) = self.processor.read([marked(self.renderer.probe(pictures=1))])
        if self.renderer.placeholder == "" and ids[::-1].index(slot) < sum(answer.learned) - 1:
            kind = type(self.processor.processor).__name__
            raise ModelError.one("D031", f"{kind} puts pictures after the text: answers would not see them", help=HELP)
        return slot

    def _shown(self, pixels: tuple[int, int], count: int) -> tuple[list[int], Counter[int]]:
        """Tokens of a question with blank pictures, and those of the same row that are not the placeholders'."""
        _, tensors = self._run(count, pixels=pixels)
        (row,) = self.processor.read([marked(self.renderer.probe(pictures=count))])
        ids = tensors["input_ids"][0][tensors["attention_mask"][0].bool()].tolist()
        return ids, Counter(row.ids) - Counter(self.placeholder * count)

    def _takes(self, *pictures: int) -> bool:
        try:
            self._run(*pictures)
        except DataError:
            return False
        return True

    def _run(
        self, *pictures: int, pixels: tuple[int, int] = TRIED[0], prompt: bool = False
    ) -> tuple[list[MarkedRow], dict[str, torch.Tensor]]:
        """The processor's output for rows with so many blank pictures each."""
        texts = [marked(self.renderer.probe(pictures=count, prompt=prompt)) for count in pictures]
        return self.processor.run(texts, [[Image.new("RGB", pixels, (127, 127, 127))] * count for count in pictures])
