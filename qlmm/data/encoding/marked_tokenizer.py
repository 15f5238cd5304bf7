"""A tokenizer that reads marked text: cut where a piece ends, and marked where an answer does.

Processors expand placeholders, count them and build masks from the ids they get; so they must be given whole rows.
Encoding needs rows cut into pieces that are tokenised apart, and needs to know what is learned. Both meet here: the
row carries marks that no text holds, and the tokenizer inside the processor knows what they mean.

Usage: ``own, tokenizer = reading_marks(processor); own(text=[marked(pieces)], …); rows = tokenizer.taken()``
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

from qlmm.core.errors import ModelError

__all__ = ["CUT", "MARKS", "REST", "MarkedRow", "PieceTokenizer", "Segment", "marked", "reading_marks"]

# Unicode noncharacters: never text; rows that hold them lose them.
CUT, REST, HOLE = "\ufdd0", "\ufdd1", "\ufdd2"
MARKS = CUT + REST + HOLE


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of rendered text that is tokenised on its own.

    Attributes:
        text: with one placeholder per picture.
        learned: how many characters, from the first, belong to an answer.
    """

    text: str
    learned: int = 0


@dataclass(slots=True)
class MarkedRow:
    """One tokenised row.

    Attributes:
        ids: its tokens.
        learned: per token, whether it is learned.
        ends: per token, where it ends in the marked text.
    """

    ids: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    @property
    def answer(self) -> list[bool]:
        """Per token, whether it is the last answer's: the last of the stretches that are learned."""
        after = len(self.learned) - self.learned[::-1].index(True) if True in self.learned else 0
        before = next((place for place in range(after - 1, -1, -1) if not self.learned[place]), -1)
        return [before < place < after for place in range(len(self.learned))]


def marked(segments: Iterable[Segment]) -> str:
    """Segments as one text; every segment is closed by a cut, so that marked text can be told from any other.

    Processors may put text of their own before and after.
    """
    return "".join(
        (f"{one.text[: one.learned]}{REST}{one.text[one.learned :]}" if one.learned else one.text) + CUT
        for one in segments
    )


class _Encoded(BatchEncoding):
    """What a tokenizer returns, with places counted in the marked text."""

    rows: Sequence[MarkedRow] = ()

    def char_to_token(self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0) -> int:
        """The token at a character; some processors ask where the placeholders they wrote have gone."""
        row, place = (0, batch_or_char_index) if char_index is None else (batch_or_char_index, char_index)
        return bisect_right(self.rows[row].ends, place)


class PieceTokenizer:
    """Mixed into a tokenizer's own class: marked texts are read piece by piece, all others as ever."""

    _start: list[int]
    _suffix: list[int]
    _lead: list[int]
    _rows: list[MarkedRow]

    def surround(self, start: list[int], suffix: list[int], lead: list[int]) -> None:
        """Set the ids before and after every row, and those put before each later piece."""
        self._start, self._suffix, self._lead, self._rows = start, suffix, lead, []

    def __call__(self, text: Any = None, *further: Any, **settings: Any) -> Any:
        """Ids, attention mask and, where asked for, token types (1 from the first answer on), padded on the right."""
        texts = [text] if isinstance(text, str) else text
        if not texts or not all(isinstance(one, str) and CUT in one for one in texts):
            return super().__call__(text, *further, **settings)  # type: ignore[misc]  # the tokenizer's own
        rows = self.read(texts)
        self._rows = rows
        longest = max(len(row.ids) for row in rows)
        pad: int = self.pad_token_id  # type: ignore[attr-defined]  # the tokenizer's own
        columns = {
            "input_ids": [self._padded(row.ids, longest, pad) for row in rows],
            "attention_mask": [self._padded([1] * len(row.ids), longest, 0) for row in rows],
        }
        if settings.get("return_token_type_ids"):
            columns["token_type_ids"] = [self._padded(_types(row), longest, 0) for row in rows]
        encoded = _Encoded(columns)
        encoded.rows = rows
        return encoded

    def read(self, texts: Sequence[str]) -> list[MarkedRow]:
        """Tokenise marked texts, all their pieces in one call."""
        rows = [[piece for piece in text.split(CUT) if piece] for text in texts]
        lead = "\n" if self._lead else ""
        # Where the tokenizer begins texts with a space of its own, a line feed keeps it off all but the first.
        sent = [piece.replace(REST, "") if n == 0 else lead + piece.replace(REST, "") for row in rows for n, piece in enumerate(row)]  # fmt: skip  # noqa: E501
        output = super().__call__(sent, add_special_tokens=False, return_offsets_mapping=True)  # type: ignore[misc]  # as above
        encoded = zip(output["input_ids"], output["offset_mapping"], strict=True)
        return [self._row(row, text, encoded) for row, text in zip(rows, texts, strict=True)]

    def _row(self, pieces: Sequence[str], text: str, encoded: Any) -> MarkedRow:
        bos = self.special_tokens_map.get("bos_token")  # type: ignore[attr-defined]  # as above
        start = [] if bos and pieces[0].startswith(bos) else self._start
        row, place = MarkedRow([*start], [False] * len(start), [0] * len(start)), 0
        for number, piece in enumerate(pieces):
            ids, offsets = next(encoded)
            skipped = self._skipped(ids, number)
            shift = len(self._lead and "\n") if number else 0
            answer = piece.find(REST)
            place = text.index(piece, place)
            row.ids += ids[skipped:]
            row.learned += [first - shift < answer for first, _ in offsets[skipped:]]
            row.ends += [place + last - shift + (0 <= answer < last - shift) for _, last in offsets[skipped:]]
            place += len(piece)
        if self._suffix and row.ids[-len(self._suffix) :] != self._suffix:
            row.ids += self._suffix
            row.learned += [False] * len(self._suffix)
            row.ends += [place] * len(self._suffix)
        return row

    def _skipped(self, ids: Sequence[int], number: int) -> int:
        """How many tokens of a row's later piece are the line feed that was put before it."""
        if number == 0 or not self._lead:
            return 0
        if list(ids[: len(self._lead)]) != self._lead:
            raise ModelError.one("D035", "the tokenizer joins a line feed with the text after it: texts cannot be cut")
        return len(self._lead)

    def taken(self) -> list[MarkedRow]:
        """The rows read last."""
        rows, self._rows = self._rows, []
        return rows

    @staticmethod
    def _padded(values: list[int], length: int, pad: int) -> list[int]:
        return [*values, *[pad] * (length - len(values))]


def _types(row: MarkedRow) -> list[int]:
    first = row.learned.index(True) if True in row.learned else len(row.ids)
    return [int(place >= first) for place in range(len(row.ids))]


class _Instruction:
    """Mixed into a second tokenizer of a processor: it sees what stands before the first answer.

    InstructBLIP's Q-Former reads the instruction; with the answer in it, the pictures' features would tell the answer.
    """

    def __call__(self, text: Any = None, *further: Any, **settings: Any) -> Any:
        texts = [text] if isinstance(text, str) else text
        shown = [CUT.join(one.split(REST)[0].split(CUT)[: -1 if REST in one else None]) for one in texts]
        plain = [one.replace(CUT, "") for one in shown]
        return super().__call__(plain, *further, **settings)  # type: ignore[misc]  # the tokenizer's own


def reading_marks(processor: Any, *, whole: bool = False) -> tuple[Any, Any]:
    """A copy of a processor that reads marked text, and its tokenizer.

    Args:
        processor: the base's.
        whole: end texts as the tokenizer does: what an encoder reads is complete, and no answer follows it.
    """
    own = copy.copy(processor)
    for name, value in vars(processor).items():
        if isinstance(value, PreTrainedTokenizerBase):
            setattr(own, name, _mixed(value, PieceTokenizer if name == "tokenizer" else _Instruction))
    tokenizer = own.tokenizer
    start, suffix = _around(tokenizer)
    tokenizer.surround(start, suffix if whole else [], _leading_newline(tokenizer))
    return own, tokenizer


def _mixed(tokenizer: PreTrainedTokenizerBase, mixin: type) -> PreTrainedTokenizerBase:
    mixed = copy.copy(tokenizer)
    kind = type(tokenizer)
    mixed.__class__ = type(f"{mixin.__name__}{kind.__name__}", (mixin, kind), {})
    return mixed


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer itself puts before and after a text: the begin token of Llama, the end token of T5."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    places = [place for place in range(len(full) - len(plain) + 1) if full[place : place + len(plain)] == plain]
    return (full[: places[0]], full[places[0] + len(plain) :]) if places else ([], [])


def _leading_newline(tokenizer: Any) -> list[int]:
    """The ids of a line feed, where texts must begin with one because the tokenizer otherwise adds a space; else none.

    SentencePiece tokenizers put a space before the first word of a text. A segment is no new text, so it is tokenised
    after a line feed, whose ids are then taken away.
    """
    line_feed = list(tokenizer("\n", add_special_tokens=False)["input_ids"])
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    after = list(tokenizer("\na", add_special_tokens=False)["input_ids"])
    return line_feed if after != line_feed + plain and after[: len(line_feed)] == line_feed else []
