"""The columns of OpenAI and TRL: ``messages`` (or ``prompt`` and ``completion``), ``image`` or ``images``, ``videos``.

Content is text, or a list of text, image, image_url and video parts. Where pictures and videos stand:
`qlmm.data.shown`.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qlmm.data.contract import MARK, Format, Media, RawRow, closed, present, role_of
from qlmm.data.errors import BadRow
from qlmm.data.row_keys import MEDIA, learned
from qlmm.data.sample import Role, Turn
from qlmm.data.shown import Column, RawTurn, Shown, beside, placed

__all__ = ["FORMAT", "answered", "list_of", "read_messages"]


def _parse(row: RawRow, images: Media) -> list[Turn]:
    return read_messages(_entries(row), row, images)


def read_messages(entries: Sequence[object], row: RawRow, images: Media) -> list[Turn]:
    """Messages as turns, with the pictures and videos that their row names, which must be those that they show."""
    columns = beside(row, images)
    return placed([_said(entry, number, images, columns) for number, entry in enumerate(entries, 1)], columns)


def _entries(row: RawRow) -> Sequence[object]:
    """The messages of a row, in one column or in two."""
    if present(row, "messages"):
        return list_of(row["messages"], "messages", "user")
    if not present(row, "completion"):
        raise BadRow("`prompt` without `completion`: the row has no answer")
    prompt = list_of(row["prompt"], "prompt", "user")
    return [*prompt, *list_of(row["completion"], "completion", "assistant")]


def list_of(value: object, key: str, role: Role) -> Sequence[object]:
    """A column's messages; text is one message of the role, except in the column of whole conversations."""
    if isinstance(value, str) and key != "messages":
        return [{"role": role, "content": value}]
    if isinstance(value, Mapping) and key != "messages":
        return [value]
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"`{key}` is not a list of messages")
    return value


def _said(entry: object, number: int, images: Media, columns: Mapping[str, Column]) -> RawTurn:
    content = entry.get("content", entry.get("value")) if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or content is None:
        raise BadRow(f"message {number} is not {{role, content}}")
    role = role_of(entry)
    if role is None:
        unknown = entry.get("role", entry.get("from"))
        raise BadRow(f"unknown role `{unknown}` in message {number}: known are user, assistant, system")
    if not isinstance(content, (str, list, tuple)):
        raise BadRow(f"the content of message {number} is neither text nor a list of parts")
    pieces = [content] if isinstance(content, str) else [_piece(part, number, images, columns) for part in content]
    return RawTurn(role, tuple(pieces), learned(entry, role, f"message {number}"))


def _piece(part: object, number: int, images: Media, columns: Mapping[str, Column]) -> str | Shown:
    """The content of a part: a text, a picture or a video."""
    if not isinstance(part, Mapping):
        part = {}
    kind = str(part.get("type"))
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    value: object = None
    if kind == "image_url":
        kind, value = "image", part.get("image_url")
        value = value.get("url") if isinstance(value, Mapping) else value
    elif kind in columns:
        value = next((part[key] for key in (kind, "path", "url") if present(part, key)), None)
    if kind not in columns:
        raise BadRow(f"a part of message {number} is neither text, image, image_url nor video")
    return columns[kind].next() if value is None else columns[kind].shown(value, images)


def answered(row: RawRow) -> RawRow:
    """The row with a mark for an answer, where its messages end with a question, or it has a prompt only."""
    if present(row, "messages"):
        return closed(row, "messages", {"role": "assistant", "content": MARK})
    return {**row, "completion": MARK} if present(row, "prompt") and not present(row, "completion") else row


def _detect(row: RawRow) -> bool:
    return isinstance(row.get("messages"), list) or (present(row, "prompt") and present(row, "completion"))


FORMAT = Format(
    doc="OpenAI and TRL columns: messages: [{role: user|assistant|system, content: text or parts}], "
    "or prompt and completion, system?; image or images name pictures for image parts without a name, for <image> "
    "markers, or for the front; videos names videos (a file or a list of frames each) in the same way, with <video>. "
    "A turn with loss: false, train: false or weight: 0 is not learned.",
    example={
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
            {"role": "assistant", "content": "A cat."},
        ],
        "images": ["cat.jpg"],
    },
    required=("messages|prompt",),
    detect=_detect,
    parse=_parse,
    media=MEDIA,
    answered=answered,
)
