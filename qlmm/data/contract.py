"""What a data format is, and all that the data layer needs to know of a model.

A format is one file of ``qlmm/data/formats`` that exposes one ``FORMAT``; its name in a recipe is the file's name.

Usage: ``turns = FORMAT.read(row, ImageRoot("photos"))``
"""

from __future__ import annotations

import ast
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from qlmm.data.errors import BadRow
from qlmm.data.row_keys import refuse_unread, with_keys
from qlmm.data.sample import ImageRef, Kind, Role, Turn
from qlmm.data.tracked import Tracked, named

__all__ = [
    "MARK", "MOST_NAMES", "Format", "Media", "Processor", "RawRow", "absent", "closed", "messages_in_text", "present",
    "role_of", "unpacked",
]  # fmt: skip

# A row as its file has it: nothing is known of the values yet.
RawRow = Mapping[str, object]

ROLES: tuple[Role, ...] = ("system", "user", "assistant")
# What data sets call the three, in lower case.
SPEAKERS: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
# Of texts that are tried as lists, in JSON and in Python's spelling: trying takes a multiple of that in memory.
LONGEST_JSON, LONGEST_LITERAL = 16 * 1024 * 1024, 1024 * 1024
# The later a kind, the more its rows tell about answers.
KINDS: tuple[Kind, ...] = ("conversation", "feedback", "preference")
# Names of a key that a message lists, the usual ones first.
MOST_NAMES = 3
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
        rows: an object that is a whole file -> its rows; None for another. Unset: files are lists of rows.
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
    rows: Callable[[RawRow], Iterator[RawRow | BadRow] | None] = lambda value: None

    @property
    def rank(self) -> tuple[int, int]:
        """What decides between formats that detect the same row: two answers before a verdict before a conversation."""
        return KINDS.index(self.kind), self.precedence

    @property
    def answers(self) -> int:
        """How many answers end the turns of a row, after its question."""
        return 2 if self.kind == "preference" else 1

    def read(self, row: RawRow, images: Media) -> tuple[Turn, ...]:
        """The turns of a row, checked; a `Tracked` row knows afterwards which of its keys were not read.

        Raises:
            BadRow: for a row that cannot be learned from; its help shows a correct one.
        """
        try:
            tracked = row if isinstance(row, Tracked) else Tracked(row)
            for keys in (*self.required, *([self.verdict] if self.verdict else [])):
                if not any(key in row if key in self.media else present(row, key) for key in keys.split("|")):
                    raise BadRow(f"no `{'` or `'.join(keys.split('|')[:MOST_NAMES])}`; the row has {_listed(row)}")
            if self.kind == "feedback":
                self.desirable(tracked)
            turns = with_keys(self.parse(tracked, images), tracked)
            whole = _compared(turns) if self.kind == "preference" else _checked(turns)
            _check_learned(whole, judged=() if self.kind == "conversation" else whole[-self.answers :])
            refuse_unread(tracked, shows=any(isinstance(part, ImageRef) for turn in whole for part in turn.parts))
            return whole
        except BadRow as bad:
            if bad.help is None:
                bad.help = f"a correct row: {json.dumps(self.example, ensure_ascii=False)}"
            raise

    def desirable(self, row: RawRow) -> bool:
        """The verdict in a row of feedback; BadRow when it is neither true nor false."""
        key = next(key for key in self.verdict.split("|") if present(row, key))
        if not isinstance(row[key], bool):
            raise BadRow(f"`{key}` is {named(row[key])}, neither true nor false")
        return bool(row[key])


def closed(row: RawRow, key: str, answer: RawRow) -> RawRow:
    """The row with ``answer`` after a column's turns, where the last is the user's."""
    turns = row.get(key)
    if not isinstance(turns, (list, tuple)) or not turns or role_of(turns[-1]) != "user":
        return row
    return {**row, key: [*turns, answer]}


def role_of(entry: object) -> Role | None:
    """Who speaks in a ``{role, …}`` or ``{from, …}``, in any of the usual names; None for another or none."""
    speaker = entry.get("role", entry.get("from")) if isinstance(entry, Mapping) else None
    return SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None


def absent(value: object) -> bool:
    """Whether a value is one of the ways to write that there is none: null, no text, not a number."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def present(row: RawRow, key: str) -> bool:
    """Whether a row has a value for a key; columnar files write an absent value as null or not a number."""
    return row.get(key) == "" or not absent(row.get(key))


def unpacked(value: object) -> object:
    """A list or an object that stands in a column as text, in JSON or in Python's spelling; all else as it is."""
    text = value.strip() if isinstance(value, str) and len(value) <= LONGEST_JSON else ""
    if text[:1] + text[-1:] not in ("[]", "{}"):
        return value
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return value if len(text) > LONGEST_LITERAL else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def messages_in_text(row: RawRow) -> RawRow:
    """The row with messages that stand in a column as text, as csv and some parquet files have them, as messages."""
    return {key: _messages(value) for key, value in row.items()}


def _messages(text: object) -> object:
    value = unpacked(text)
    entries = value if isinstance(value, list) else [value]
    spoken = all(isinstance(entry, dict) and ({"role", "from"} & set(entry)) for entry in entries)
    return value if entries and spoken else text


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


def _check_learned(turns: Sequence[Turn], *, judged: Sequence[Turn]) -> None:
    """Refuse a row that excepts every answer, or one of those that it compares or judges."""
    if not any(turn.learned for turn in turns if turn.role == "assistant") or not all(turn.learned for turn in judged):
        raise BadRow("no answer is learned: the row excepts it")


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
