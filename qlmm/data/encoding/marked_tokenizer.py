"""Tokens of marked text: a mark where a piece ends that is tokenised apart, and one where an answer does.

No row's own text has these marks, so that a processor can be given whole rows (`qlmm.data.encoding.marked_processor`).

Usage: ``rows = MarkedTokenizer(processor.tokenizer).read([marked(segments)])``
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlmm.core.errors import ModelError

__all__ = ["CUT", "HOLE", "MARKS", "REST", "MarkedRow", "MarkedTokenizer", "Segment", "marked", "padded"]

# Unicode noncharacters: never text; rows that have them lose them.
CUT, REST, HOLE = "\ufdd0", "\ufdd1", "\ufdd2"
MARKS = CUT + REST + HOLE

# Ids and offsets of one piece.
Piece = tuple[Sequence[int], Sequence[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of rendered text that is tokenised on its own; its first ``learned`` characters are an answer's."""

    text: str
    learned: int = 0


@dataclass(slots=True)
class MarkedRow:
    """One tokenised row: per token its id, whether it is learned, and where it ends in the marked text."""

    ids: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def after(self, ids: Sequence[int]) -> MarkedRow:
        """The row behind other tokens, which are not learned."""
        return MarkedRow([*ids, *self.ids], [False] * len(ids) + self.learned, [0] * len(ids) + self.ends)

    @property
    def answer(self) -> list[bool]:
        """Per token, whether it is the last answer's: the last of the stretches that are learned."""
        after = len(self.learned) - self.learned[::-1].index(True) if True in self.learned else 0
        before = next((place for place in range(after - 1, -1, -1) if not self.learned[place]), -1)
        return [before < place < after for place in range(len(self.learned))]


def marked(segments: Iterable[Segment]) -> str:
    """Segments as one text, a cut after each; processors may put text of their own before and after."""
    return "".join(
        (f"{one.text[: one.learned]}{REST}{one.text[one.learned :]}" if one.learned else one.text) + CUT
        for one in segments
    )


def padded(rows: Sequence[Sequence[int]], pad: int) -> list[list[int]]:
    """Rows of one length, padded on the right."""
    longest = max(len(row) for row in rows)
    return [[*row, *[pad] * (longest - len(row))] for row in rows]


class MarkedTokenizer:
    """A tokenizer for marked texts, which asks the base's own for every piece."""

    def __init__(self, tokenizer: Any, *, whole: bool = False) -> None:
        """Find out what the tokenizer puts around a text; ``whole`` ends texts as it does, since no answer follows."""
        self._plain = tokenizer
        self._begin_token = tokenizer.special_tokens_map.get("bos_token")
        self._start, suffix = _around(tokenizer)
        self._suffix = suffix if whole else []
        self._lead = _leading_newline(tokenizer)

    def read(self, texts: Sequence[str]) -> list[MarkedRow]:
        """Tokenise marked texts, all their pieces in one call; D035 when a line feed is joined with the text after."""
        rows = [[piece for piece in text.split(CUT) if piece] for text in texts]
        # Where the tokenizer begins texts with a space of its own, a line feed keeps it off all but the first.
        lead = "\n" if self._lead else ""
        sent = [
            (lead if number else "") + piece.replace(REST, "") for pieces in rows for number, piece in enumerate(pieces)
        ]
        output = self._plain(sent, add_special_tokens=False, return_offsets_mapping=True)
        encoded = zip(output["input_ids"], output["offset_mapping"], strict=True)
        return [self._row(row, text, encoded) for row, text in zip(rows, texts, strict=True)]

    def _row(self, pieces: Sequence[str], text: str, encoded: Iterator[Piece]) -> MarkedRow:
        begun = self._begin_token and pieces[0].startswith(self._begin_token)
        start = [] if begun else self._start
        row, place = MarkedRow([*start], [False] * len(start), [0] * len(start)), 0
        for number, piece in enumerate(pieces):
            ids, offsets = next(encoded)
            # The line feed that was put before a later piece: so many tokens, one character.
            skipped, shift = (len(self._lead), 1) if number and self._lead else (0, 0)
            if list(ids[:skipped]) != self._lead[:skipped]:
                message = "the tokenizer joins a line feed with the text after it: texts cannot be cut"
                raise ModelError.one("D035", message)
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


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer itself puts before and after a text: the begin token of Llama, the end token of T5."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    places = [place for place in range(len(full) - len(plain) + 1) if full[place : place + len(plain)] == plain]
    return (full[: places[0]], full[places[0] + len(plain) :]) if places else ([], [])


def _leading_newline(tokenizer: Any) -> list[int]:
    """The ids of a line feed, where texts must begin with one because the tokenizer otherwise adds a space; else none.

    SentencePiece tokenizers put a space before the first word of a text. A segment is not a new text, so it is
    tokenised after a line feed, whose ids are then taken away.
    """
    line_feed = list(tokenizer("\n", add_special_tokens=False)["input_ids"])
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    after = list(tokenizer("\na", add_special_tokens=False)["input_ids"])
    return line_feed if after != line_feed + plain and after[: len(line_feed)] == line_feed else []
