"""A processor that is given marked text: rows as tokenised come back beside the tensors it makes of them.

Processors expand placeholders, count them and build masks from the ids they get, and they get these by calling their
own ``self.tokenizer``. So for one call a stand-in takes its place in a copy of the processor: it reads marked texts,
keeps the rows it read, and is the tokenizer itself in everything else. Neither the processor nor the tokenizer that
the base came with is ever changed.

Usage: ``rows, tensors = MarkedProcessor(processor).run([marked(segments)], [[picture]])``
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

from qlmm.core.errors import DataError, ModelError
from qlmm.data.contract import Processor
from qlmm.data.encoding.marked_tokenizer import CUT, REST, MarkedRow, MarkedTokenizer

if TYPE_CHECKING:
    import torch
    from PIL import Image

__all__ = ["FAILURES", "HELP", "MarkedProcessor"]

HELP = "name a chat template that this base was trained with: base.chat_template"
# What processors have been seen to raise for rows they cannot take.
FAILURES = (ValueError, AttributeError, LookupError, TypeError, RuntimeError, NotImplementedError)


class MarkedProcessor:
    """Runs a processor on marked texts.

    Attributes:
        processor: the base's.
        by_row: whether it is given one list of pictures per row. Most take that; GOT-OCR reads such lists as pages of
            one document, and is given all pictures in one list.
    """

    def __init__(self, processor: Processor, *, whole: bool = False, by_row: bool = True) -> None:
        self.processor = processor
        self.by_row = by_row
        self._whole = whole
        self._tokenizer = MarkedTokenizer(processor.tokenizer, whole=whole)
        # Positions of M-RoPE need token types, which not every processor of such a model gives unasked.
        typed = "mm_token_type_ids" in processor.model_input_names
        self._asked = {"add_special_tokens": False, **({"return_mm_token_type_ids": True} if typed else {})}

    def with_one_list(self) -> MarkedProcessor:
        """The same with all pictures of a batch in one list."""
        return MarkedProcessor(self.processor, whole=self._whole, by_row=False)

    def read(self, texts: Sequence[str]) -> list[MarkedRow]:
        """Marked texts as tokenised, each picture a single placeholder."""
        return self._tokenizer.read(texts)

    def run(
        self, texts: Sequence[str], pictures: Sequence[Sequence[Image.Image]]
    ) -> tuple[list[MarkedRow], dict[str, torch.Tensor]]:
        """Rows as tokenised, and everything the processor makes of them and their pictures.

        Raises:
            ModelError: D037 when the processor changes tokens after they were read.
            DataError: D039 with the processor's own words when it refuses the rows.
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
        if not _unchanged(stand_in.rows, output["input_ids"]):
            message = f"{kind} changes tokens after they were read: what is learned is not known"
            raise ModelError.one("D037", message, help="choose another base")
        return stand_in.rows, output


def _unchanged(rows: Sequence[MarkedRow], ids: torch.Tensor) -> bool:
    """Whether the tokens are those that were read; some processors put picture tokens before all rows."""
    before = ids.shape[1] - max((len(row.ids) for row in rows), default=0)
    return bool(rows) and all(
        ids[number, before : before + len(row.ids)].tolist() == row.ids for number, row in enumerate(rows)
    )


def _with_tokenizer(processor: Processor, stand_in: _MarkReader) -> Any:
    """A copy of a processor with the stand-in for its tokenizer, and one for a second tokenizer, if there is one."""
    own = copy.copy(processor)
    others = [name for name, value in vars(processor).items() if isinstance(value, PreTrainedTokenizerBase)]
    for name in others:
        vars(own)[name] = stand_in if name == "tokenizer" else _InstructionReader(vars(processor)[name])
    return own


class _StandIn:
    """A tokenizer in everything but how it is called.

    No subclass can do this: a tokenizer is a loaded object, and processors only ever call and ask the one they hold.
    """

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    def __getattr__(self, name: str) -> Any:
        return attrgetter(name)(vars(self)["plain"])

    def __len__(self) -> int:
        return len(self.plain)


class _MarkReader(_StandIn):
    """Reads marked texts and keeps what it read, for one call; reads all other texts as the tokenizer does.

    Attributes:
        rows: the marked rows of the call, in order.
    """

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
        longest = max(len(row.ids) for row in self.rows)
        columns = {
            "input_ids": [_padded(row.ids, longest, self.plain.pad_token_id) for row in self.rows],
            "attention_mask": [_padded([1] * len(row.ids), longest, 0) for row in self.rows],
        }
        if settings.get("return_token_type_ids"):
            columns["token_type_ids"] = [_padded(_types(row), longest, 0) for row in self.rows]
        return _Encoded(columns, self.rows)


class _InstructionReader(_StandIn):
    """A second tokenizer of a processor, which sees what stands before the first answer.

    InstructBLIP's Q-Former reads the instruction; with the answer in it, the pictures' features would give it away.
    """

    def __call__(self, text: Any = None, *further: Any, **settings: Any) -> Any:
        """What the tokenizer makes of the texts up to their first answers."""
        texts = [text] if isinstance(text, str) else text
        shown = [CUT.join(one.split(REST)[0].split(CUT)[: -1 if REST in one else None]) for one in texts]
        return self.plain([one.replace(CUT, "") for one in shown], *further, **settings)


class _Encoded(BatchEncoding):
    """What a tokenizer returns, with places counted in the marked text."""

    def __init__(self, columns: dict[str, list[list[int]]], rows: Sequence[MarkedRow]) -> None:
        super().__init__(columns)
        self.rows = rows

    def char_to_token(self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0) -> int:
        """The token at a character; some processors ask where the placeholders they wrote have gone."""
        row, place = (0, batch_or_char_index) if char_index is None else (batch_or_char_index, char_index)
        return bisect_right(self.rows[row].ends, place)


def _padded(values: list[int], length: int, pad: int) -> list[int]:
    return [*values, *[pad] * (length - len(values))]


def _types(row: MarkedRow) -> list[int]:
    first = row.learned.index(True) if True in row.learned else len(row.ids)
    return [int(place >= first) for place in range(len(row.ids))]
