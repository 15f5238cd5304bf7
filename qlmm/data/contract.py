"""What a data format is, and all that the data layer needs to know of a model.

A format is one file of ``qlmm/data/formats`` that exposes one ``FORMAT``; its name in a recipe is the file's name.

Usage: ``turns = FORMAT.read(row, ImageRoot("photos"))``
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from qlmm.data.errors import BadRow
from qlmm.data.sample import ImageRef, Kind, Turn

__all__ = ["MARK", "Format", "Media", "Processor", "RawRow", "closed", "present"]

# A row as its file has it: nothing is known of the values yet.
RawRow = Mapping[str, object]

ROLES = ("system", "user", "assistant")
# The later a kind, the more its rows tell about answers.
KINDS: tuple[Kind, ...] = ("conversation", "feedback", "preference")
# Stands in the place of an answer where only the question is wanted; it is never shown to a model.
MARK = "-"


class Media(Protocol):
    """What a format asks for pictures and videos: `qlmm.data.media.media_root.ImageRoot`."""

    def ref(self, value: object) -> ImageRef:
        """A picture from a name, inline base64, encoded bytes, ``{bytes, path}`` or a Pillow image."""

    def refs(self, value: object) -> list[ImageRef]:
        """The pictures of a column that may have none, one, or a list."""

    def video(self, value: object) -> tuple[ImageRef, ...]:
        """A video as the pictures it is shown as."""

    def videos(self, value: object) -> list[tuple[ImageRef, ...]]:
        """The videos of a column that may have none, one, or a list."""


@dataclass(frozen=True, slots=True)
class Format:
    """One shape that rows come in.

    Attributes:
        doc: what the format is and which data sets use it.
        example: one correct row; shown in errors, and checked by the contract test.
        required: keys a row must have; ``"image|images"`` means either.
        detect: whether a row has this format's own keys; the keys of other formats do not matter.
        parse: row and pictures -> turns; raises ``BadRow``. The turns of a preference are those of its prompt, then
            the chosen and the rejected answer.
        verdict: of feedback, the keys for whether the answer is desirable, in the form of ``required``.
        precedence: decides between formats of one kind that detect the same row; the highest takes it.
        media: keys that name pictures or videos.
        answered: a row that ends with its question -> the same row with `MARK` for an answer; others as they are.
            Unset: a row of this format always has its answer.
    """

    doc: str
    example: RawRow
    required: tuple[str, ...]
    detect: Callable[[RawRow], bool]
    parse: Callable[[RawRow, Media], Sequence[Turn]]
    kind: Kind = "conversation"
    verdict: str = ""
    precedence: int = 0
    media: tuple[str, ...] = ()
    answered: Callable[[RawRow], RawRow] = lambda row: row

    @property
    def rank(self) -> tuple[int, int]:
        """What decides between formats that detect the same row: two answers before a verdict before a conversation."""
        return KINDS.index(self.kind), self.precedence

    @property
    def answers(self) -> int:
        """How many answers end the turns of a row, after its question."""
        return 2 if self.kind == "preference" else 1

    def read(self, row: RawRow, images: Media) -> tuple[Turn, ...]:
        """The turns of a row, checked.

        Raises:
            BadRow: for a row that cannot be learned from; its help shows a correct one.
        """
        try:
            for keys in (*self.required, *([self.verdict] if self.verdict else [])):
                if not any(present(row, key) for key in keys.split("|")):
                    raise BadRow(f"no `{keys.replace('|', '` or `')}`; the row has {_listed(row)}")
            if self.kind == "feedback":
                self.desirable(row)
            turns = self.parse(row, images)
            return _compared(turns) if self.kind == "preference" else _checked(turns)
        except BadRow as bad:
            if bad.help is None:
                bad.help = f"a correct row: {json.dumps(self.example, ensure_ascii=False)}"
            raise

    def desirable(self, row: RawRow) -> bool:
        """The verdict in a row of feedback; BadRow when it is neither true nor false."""
        key = next(key for key in self.verdict.split("|") if present(row, key))
        if not isinstance(row[key], bool):
            raise BadRow(f"`{key}` is {type(row[key]).__name__}, neither true nor false")
        return bool(row[key])


def closed(row: RawRow, key: str, *, speaker: tuple[str, str], answer: RawRow) -> RawRow:
    """The row with ``answer`` after a column's turns, where the last is the user's by ``speaker``, key and value."""
    turns = row.get(key)
    if not isinstance(turns, Sequence) or not turns or not isinstance(turns[-1], Mapping):
        return row
    return {**row, key: [*turns, answer]} if turns[-1].get(speaker[0]) == speaker[1] else row


def present(row: RawRow, key: str) -> bool:
    """Whether a row has a value for a key; columnar files write an absent value as null."""
    return row.get(key) is not None


def _checked(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns, neighbouring texts joined: known roles, alternating, no empty turn, an answer at the end."""
    whole = tuple(_joined(turn) for turn in turns)
    dialogue = whole[1:] if whole and whole[0].role == "system" else whole
    if not any(turn.role == "assistant" for turn in dialogue):
        raise BadRow("no answer: the row has no assistant turn")
    for number, (turn, expected) in enumerate(zip(dialogue, ("user", "assistant") * len(dialogue), strict=False), 1):
        if turn.role != expected:
            raise BadRow(f"roles out of order: turn {number} is `{turn.role}` where `{expected}` belongs")
        _check_turn(turn, number)
    if dialogue[-1].role != "assistant":
        raise BadRow("no answer: the last turn is the user's")
    return whole


def _compared(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns of a preference: a prompt that ends with a question, then two answers."""
    *prompt, chosen, rejected = turns
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        if answer.role != "assistant":
            raise BadRow(f"roles out of order: the {side} answer is `{answer.role}`'s where `assistant` belongs")
        if any(isinstance(part, ImageRef) for part in answer.parts):
            raise BadRow(f"picture in the {side} answer: only users show pictures")
        if not answer.text.strip():
            raise BadRow(f"the {side} answer is empty")
    if chosen.text.strip() == rejected.text.strip():
        raise BadRow("the chosen and the rejected answer are the same: there is nothing to prefer")
    if not prompt:
        raise BadRow("no question before the answers")
    return (*_checked([*prompt, chosen]), _checked([*prompt, rejected])[-1])


def _check_turn(turn: Turn, number: int) -> None:
    pictures = any(isinstance(part, ImageRef) for part in turn.parts)
    if turn.role == "assistant" and pictures:
        raise BadRow(f"picture in an answer (turn {number}): only users show pictures")
    if not turn.text.strip() and not pictures:
        raise BadRow(f"empty {'answer' if turn.role == 'assistant' else 'question'} (turn {number})")
    try:
        turn.text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"half a surrogate pair in turn {number}: the text is not valid Unicode") from None


def _joined(turn: Turn) -> Turn:
    if turn.role not in ROLES:
        raise BadRow(f"unknown role `{turn.role}`: known are {', '.join(ROLES)}")
    parts: list[str | ImageRef] = []
    for part in turn.parts:
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += part
        elif part != "":
            parts.append(part)
    return replace(turn, parts=tuple(parts))


def _listed(row: RawRow) -> str:
    keys = [f"`{key}`" for key in list(row)[:8]]
    return ", ".join(keys) + (" …" if len(row) > 8 else "") if keys else "no keys"


class Processor(Protocol):
    """What encoding needs of a processor of transformers."""

    tokenizer: Any
    chat_template: Any
    image_token: str
    model_input_names: Sequence[str]

    def __call__(self, *, text: Any, **settings: Any) -> Any:
        """Texts with one placeholder per picture, and the pictures, to ids and pixel values."""
