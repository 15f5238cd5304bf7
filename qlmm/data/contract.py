"""What a data format is, what a bad row is, and all that the data layer needs to know of a model.

A format is one file of ``qlmm/data/formats`` that exposes one ``FORMAT``; its name in a recipe is the file's name.

Usage: ``turns = FORMAT.read(row, ImageRoot("photos"))``
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from qlmm.core.errors import Problem, Where
from qlmm.data.sample import ImageRef, Kind, Origin, Turn

if TYPE_CHECKING:
    from qlmm.data.media.media_root import ImageRoot

__all__ = ["BadRow", "Format", "Processor", "checked", "compared", "kind_of", "present"]

ROLES = ("system", "user", "assistant")


class BadRow(Exception):
    """A row that cannot be learned from; raised by formats, collected with its origin by ``load_samples``.

    Attributes:
        reason: one sentence without a full stop.
        help: what to do, or one correct row.
        column: place in the line, from 1, where the file is text and the place is known.
        excerpt: the line, shortened, where it says more than the reason.
    """

    def __init__(
        self, reason: str, help: str | None = None, *, column: int | None = None, excerpt: str | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.help = help
        self.column = column
        self.excerpt = excerpt

    def problem(self, origin: Origin, *, code: str = "D001") -> Problem:
        """The row's problem as all of qlmm's refusals look, with file and line."""
        return Problem(code, self.reason, Where(origin.file, origin.line, self.column, self.excerpt), self.help)


@dataclass(frozen=True, slots=True)
class Format:
    """One shape that rows come in.

    Attributes:
        doc: what the format is and which data sets use it.
        example: one correct row; shown in errors, and checked by the contract test.
        required: keys a row must have; ``"image|images"`` means either.
        detect: whether a row of its kind is in this format; no two formats may claim the same row.
        parse: row and picture root -> turns; raises ``BadRow``.
        kind: what a row is: a conversation, a preference, or feedback. The turns of a preference are those of its
            prompt, then the chosen and the rejected answer.
        verdict: of feedback, the keys that may say whether the answer is desirable, in the form of ``required``.
    """

    doc: str
    example: Mapping[str, Any]
    required: tuple[str, ...]
    detect: Callable[[Mapping[str, Any]], bool]
    parse: Callable[[Mapping[str, Any], ImageRoot], Sequence[Turn]]
    kind: Kind = "conversation"
    verdict: str = ""

    def claims(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is in this format; one with answers to compare, or with a verdict, is no conversation."""
        return kind_of(row) == self.kind and self.detect(row)

    def read(self, row: Mapping[str, Any], images: ImageRoot) -> tuple[Turn, ...]:
        """The turns in a row, as ``parse`` gives them and checked.

        Raises:
            BadRow: when a key is missing, a value is of the wrong kind, or the conversation cannot be learned from;
                its help shows a correct row.
        """
        try:
            for keys in (*self.required, *([self.verdict] if self.verdict else [])):
                if not any(present(row, key) for key in keys.split("|")):
                    raise BadRow(f"no `{keys.replace('|', '` or `')}`; the row has {_listed(row)}")
            if self.kind == "feedback":
                self.desirable(row)
            turns = self.parse(row, images)
            return compared(turns) if self.kind == "preference" else checked(turns)
        except BadRow as bad:
            if bad.help is None:
                bad.help = f"a correct row: {json.dumps(self.example, ensure_ascii=False)}"
            raise

    def desirable(self, row: Mapping[str, Any]) -> bool:
        """The verdict in a row of feedback.

        Raises:
            BadRow: when it is neither true nor false; nothing is taken for one of them.
        """
        key = next(key for key in self.verdict.split("|") if present(row, key))
        if not isinstance(row[key], bool):
            raise BadRow(f"`{key}` is {type(row[key]).__name__}, neither true nor false")
        return bool(row[key])


def kind_of(row: Mapping[str, Any]) -> Kind:
    """What a row is by its keys. A `label` is a verdict only beside an answer, and only if it is true or false."""
    if present(row, "chosen") or present(row, "rejected"):
        return "preference"
    answered = any(present(row, key) for key in ("completion", "messages", "conversations"))
    judged = present(row, "kto_tag") or (answered and isinstance(row.get("label"), bool))
    return "feedback" if judged else "conversation"


def present(row: Mapping[str, Any], key: str) -> bool:
    """Whether a row has a value for a key; columnar files write an absent value as null."""
    return row.get(key) is not None


def checked(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns, if a model can learn from them: known roles, alternating, no empty turn, an answer at the end.

    Neighbouring text parts are joined, empty ones left out.

    Raises:
        BadRow: with the first rule that is broken.
    """
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


def compared(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns of a preference, if a model can learn from them: a prompt that ends with a question, then two answers.

    Raises:
        BadRow: with the first rule that is broken.
    """
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
    return (*checked([*prompt, chosen]), checked([*prompt, rejected])[-1])


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


def _listed(row: Mapping[str, Any]) -> str:
    keys = [f"`{key}`" for key in list(row)[:8]]
    return ", ".join(keys) + (" …" if len(row) > 8 else "") if keys else "no keys"


class Processor(Protocol):
    """What encoding needs of a processor; transformers' vision-language processors have it."""

    tokenizer: Any
    chat_template: Any
    image_token: str
    model_input_names: Sequence[str]

    def __call__(self, *, text: Any, **settings: Any) -> Any:
        """Texts with one placeholder per picture, and the pictures, to ids and pixel values."""
