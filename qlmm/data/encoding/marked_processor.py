"""A processor that takes marked text: rows as tokenised come back beside the tensors it makes of them.

Processors expand placeholders, count them and build masks from the ids that they get from their ``self.tokenizer``.
For one call a stand-in takes its place in a copy of the processor. It reads marked texts, keeps the rows it read, and
is the tokenizer itself in everything else. The base's own processor and tokenizer are never changed.

Usage: ``rows, tensors = MarkedProcessor(processor).run([marked(segments)], [[picture]])``
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from inspect import signature
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from PIL import Image
from transformers import BatchEncoding, PreTrainedTokenizerBase

from qlmm.core.errors import DataError, ModelError
from qlmm.data.contract import Processor
from qlmm.data.encoding.marked_tokenizer import CUT, REST, MarkedRow, MarkedTokenizer, padded

if TYPE_CHECKING:
    import torch

__all__ = ["FAILURES", "HELP", "MarkedProcessor", "stating_channels"]

# Heights of a picture that read as a number of colours.
AMBIGUOUS = (1, 3)

HELP = "name a chat template that this base was trained with: base.chat_template"
# What processors have been seen to raise for rows they cannot take.
FAILURES = (ValueError, AttributeError, LookupError, TypeError, RuntimeError, NotImplementedError)


class MarkedProcessor:
    """Runs a processor on marked texts.

    It is given one list of pictures per row or, without ``by_row``, all in one list: GOT-OCR reads lists per row as the
    pages of one document.
    """

    def __init__(self, processor: Processor, *, whole: bool = False) -> None:
        self.processor = processor
        self.by_row = True
        self._tokenizer = MarkedTokenizer(processor.tokenizer, whole=whole)
        # Positions of M-RoPE need token types, which not every processor of such a model gives unasked.
        typed = "mm_token_type_ids" in processor.model_input_names
        self._asked = {"add_special_tokens": False, **({"return_mm_token_type_ids": True} if typed else {})}

    def read(self, texts: Sequence[str]) -> list[MarkedRow]:
        """Marked texts as tokenised, each picture a single placeholder."""
        return self._tokenizer.read(texts)

    def run(
        self, texts: Sequence[str], pictures: Sequence[Sequence[Image.Image]]
    ) -> tuple[list[MarkedRow], dict[str, torch.Tensor]]:
        """Rows as tokenised, place by place as in the tensors that the processor makes of them and their pictures.

        Raises:
            ModelError: D037 when the processor changes tokens after they were read.
            DataError: D039 with the processor's own message when it refuses the rows.
        """
        stand_in = _MarkReader(self.processor.tokenizer, self._tokenizer)
        kind = type(self.processor).__name__
        images = [list(row) for row in pictures] if self.by_row else [picture for row in pictures for picture in row]
        shown = {"images": images} if any(pictures) else {}
        own = _with_tokenizer(self.processor, stand_in)
        try:
            output = dict(own(text=list(texts), **shown, **self._asked, padding=True, return_tensors="pt"))
        except FAILURES as error:
            raise DataError.one("D039", f"{kind} refuses rows: {error}", help=HELP) from error
        output.pop("labels", None)
        if "input_ids" not in output:
            raise ModelError.one("D037", f"{kind} gives no tokens: it takes no conversations")
        rows, ids = stand_in.rows, output["input_ids"].tolist()
        # Some processors put picture tokens before all rows.
        before = len(ids[0]) - max((len(row.ids) for row in rows), default=0)
        if not rows or any(own[before:][: len(row.ids)] != row.ids for own, row in zip(ids, rows, strict=True)):
            message = f"{kind} changes tokens after they were read: what is learned is not known"
            raise ModelError.one("D037", message, help="choose another base")
        return [row.after(own[:before]) for own, row in zip(ids, rows, strict=True)], output


def _with_tokenizer(processor: Processor, stand_in: _MarkReader) -> Any:
    """A copy of a processor with the stand-in for its tokenizer, and one for a second tokenizer, if there is one."""
    own: Any = copy.copy(processor)
    others = [name for name, value in vars(processor).items() if isinstance(value, PreTrainedTokenizerBase)]
    for name in others:
        vars(own)[name] = stand_in if name == "tokenizer" else _InstructionReader(vars(processor)[name])
    if (image_processor := vars(own).get("image_processor")) is not None:
        vars(own)["image_processor"] = stating_channels(image_processor)
    return own


def stating_channels(image_processor: Any) -> Any:
    """An image processor that knows which axis has the colours.

    A few guess it from the shape: a picture that is one or three pixels high is then scrambled or refused. Of larger
    ones nothing is stated, since Emu3 pads pictures of several sizes only where it guesses.
    """
    if "input_data_format" not in signature(image_processor.preprocess).parameters:
        return image_processor

    def preprocess(images: Any = None, *args: Any, **kwargs: Any) -> Any:
        if any(picture.height in AMBIGUOUS for picture in _pictures(images)):
            kwargs.setdefault("input_data_format", "channels_last")
        return image_processor.preprocess(images, *args, **kwargs)

    stating = copy.copy(image_processor)
    stating.preprocess = preprocess
    return stating


def _pictures(images: Any) -> Iterator[Image.Image]:
    """The pictures in lists within lists, as processors nest them."""
    if isinstance(images, Image.Image):
        yield images
    elif isinstance(images, list | tuple):
        for one in images:
            yield from _pictures(one)


class _StandIn:
    """A tokenizer in everything but how it is called; not a subclass, since a tokenizer is a loaded object."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    def __getattr__(self, name: str) -> Any:
        return attrgetter(name)(vars(self)["plain"])

    def __len__(self) -> int:
        return len(self.plain)


class _MarkReader(_StandIn):
    """Reads marked texts and keeps their rows, for one call; reads all other texts as the tokenizer does."""

    def __init__(self, plain: Any, tokenizer: MarkedTokenizer) -> None:
        super().__init__(plain)
        self._tokenizer = tokenizer
        self.rows: list[MarkedRow] = []

    def __call__(self, text: Any = None, *further: Any, **settings: Any) -> Any:
        """Ids, attention mask and, where asked for, token types (1 from the first answer on), padded on the right."""
        texts = [text] if isinstance(text, str) else text
        if not texts or not all(isinstance(one, str) and CUT in one for one in texts):
            return self.plain(text, *further, **settings)
        self.rows = self._tokenizer.read(texts)
        columns = {
            "input_ids": padded([row.ids for row in self.rows], self.plain.pad_token_id),
            "attention_mask": padded([[1] * len(row.ids) for row in self.rows], 0),
        }
        if settings.get("return_token_type_ids"):
            columns["token_type_ids"] = padded([_types(row) for row in self.rows], 0)
        return _Encoded(columns, self.rows)


class _InstructionReader(_StandIn):
    """A second tokenizer of a processor, which sees what stands before the first answer.

    InstructBLIP's Q-Former reads the instruction. With the answer in it, the pictures' features would give it away.
    """

    def __call__(self, text: Any = None, *further: Any, **settings: Any) -> Any:
        """The tokenizer's output for the texts up to their first answers."""
        texts = [text] if isinstance(text, str) else text
        shown = [CUT.join(one.split(REST)[0].split(CUT)[: -1 if REST in one else None]) for one in texts]
        return self.plain([one.replace(CUT, "") for one in shown], *further, **settings)


class _Encoded(BatchEncoding):
    """A tokenizer's output, with places counted in the marked text."""

    def __init__(self, columns: dict[str, list[list[int]]], rows: Sequence[MarkedRow]) -> None:
        super().__init__(columns)
        self.rows = rows

    def char_to_token(self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0) -> int:
        """The token at a character; some processors ask where the placeholders they wrote have gone."""
        row, place = (0, batch_or_char_index) if char_index is None else (batch_or_char_index, char_index)
        return bisect_right(self.rows[row].ends, place)


def _types(row: MarkedRow) -> list[int]:
    first = row.learned.index(True) if True in row.learned else len(row.ids)
    return [int(place >= first) for place in range(len(row.ids))]
