"""The columns of OpenAI and TRL: ``messages`` (or ``prompt`` and ``completion``), ``image`` or ``images``, ``videos``.

Content is text, or a list of text, image, image_url and video parts. An image part without a name of its own takes the
next picture of the column. Pictures of the column with no place in the text come first, as TRL puts them; where the
texts of user turns have exactly one ``<image>`` per picture, these are the places. Videos likewise, with ``<video>``.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qlmm.data.contract import MARK, Format, Media, RawRow, closed, present
from qlmm.data.errors import BadRow
from qlmm.data.sample import ImageRef, Part, Role, Turn

__all__ = ["FORMAT", "MEDIA", "answered", "list_of", "read_messages"]

MEDIA = ("image", "images", "videos")

Shown = tuple[ImageRef, ...]
ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system"}


@dataclass(slots=True)
class _Column:
    """The pictures, or videos, that a row names beside its messages, and how many of them parts have taken.

    ``kind``, image or video, is the type of a part that takes the next one, and, in angle brackets, the marker.
    """

    kind: str
    name: str
    given: Sequence[Shown]
    taken: int = 0

    def next(self) -> Shown:
        if self.taken == len(self.given):
            raise BadRow(f"more {self.kind} parts than {self.name}")
        self.taken += 1
        return self.given[self.taken - 1]


def _parse(row: RawRow, images: Media) -> list[Turn]:
    return read_messages(_entries(row), row, images)


def read_messages(entries: Sequence[object], row: RawRow, images: Media) -> list[Turn]:
    """Messages as turns, with the pictures and videos that their row names, which must be those that they show."""
    pictures = [*images.refs(row.get("image")), *images.refs(row.get("images"))]
    columns = {
        "video": _Column("video", "videos", images.videos(row.get("videos"))),
        "image": _Column("image", "pictures", [(picture,) for picture in pictures]),
    }
    turns = [_turn(entry, number, images, columns) for number, entry in enumerate(entries, 1)]
    for column in columns.values():
        turns = _placed(turns, column)
    return turns


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
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"`{key}` is not a list of messages")
    return value


def _turn(entry: object, number: int, images: Media, columns: Mapping[str, _Column]) -> Turn:
    if not isinstance(entry, Mapping) or not present(entry, "content"):
        raise BadRow(f"message {number} is not {{role, content}}")
    role = entry.get("role")
    if role not in ROLES:
        raise BadRow(f"unknown role `{role}` in message {number}: known are {', '.join(ROLES)}")
    content = entry["content"]
    if isinstance(content, str):
        return Turn(ROLES[role], (content,))
    if not isinstance(content, (list, tuple)):
        raise BadRow(f"the content of message {number} is neither text nor a list of parts")
    return Turn(ROLES[role], tuple(shown for part in content for shown in _part(part, number, images, columns)))


def _part(part: object, number: int, images: Media, columns: Mapping[str, _Column]) -> Sequence[Part]:
    """The content of a part: one text, one picture, or the frames of a video."""
    if not isinstance(part, Mapping):
        part = {}
    kind = str(part.get("type"))
    if kind == "text" and isinstance(part.get("text"), str):
        return (str(part["text"]),)
    if kind in columns:
        value = next((part[key] for key in (kind, "path", "url") if present(part, key)), None)
        if value is None:
            return columns[kind].next()
        return images.video(value) if kind == "video" else (images.ref(value),)
    if kind == "image_url":
        value = part.get("image_url")
        return (images.ref(value.get("url") if isinstance(value, Mapping) else value),)
    raise BadRow(f"a part of message {number} is neither text, image, image_url nor video")


def _placed(turns: list[Turn], column: _Column) -> list[Turn]:
    """The turns with the column's pictures or videos in them: at their markers, or first."""
    given, taken, marker = len(column.given), column.taken, f"<{column.kind}>"
    if taken == given:
        return turns
    if taken:
        raise BadRow(f"{taken} {column.kind} parts for {given} {column.name}")
    users = [place for place, turn in enumerate(turns) if turn.role == "user"]
    markers = sum(turns[place].text.count(marker) for place in users)
    if not users or markers not in (0, given):
        raise BadRow(f"{markers} {marker} markers for {given} {column.name}")
    if markers == 0:
        first = turns[users[0]]
        shown = [picture for one in column.given for picture in one]
        return [*turns[: users[0]], replace(first, parts=(*shown, *first.parts)), *turns[users[0] + 1 :]]
    return [replace(turn, parts=_at_markers(turn, marker, column)) if turn.role == "user" else turn for turn in turns]


def _at_markers(turn: Turn, marker: str, column: _Column) -> tuple[Part, ...]:
    parts: list[Part] = []
    for part in turn.parts:
        if not isinstance(part, str):
            parts.append(part)
            continue
        head, *rest = part.split(marker)
        parts.append(head.rstrip("\r\n") if rest else head)
        for piece in rest:
            parts += [*column.next(), piece.strip("\r\n")]
    return tuple(parts)


def answered(row: RawRow) -> RawRow:
    """The row with a mark for an answer, where its messages end with a question, or it has a prompt only."""
    if present(row, "messages"):
        return closed(row, "messages", speaker=("role", "user"), answer={"role": "assistant", "content": MARK})
    return {**row, "completion": MARK} if present(row, "prompt") and not present(row, "completion") else row


def _detect(row: RawRow) -> bool:
    return isinstance(row.get("messages"), list) or (present(row, "prompt") and present(row, "completion"))


FORMAT = Format(
    doc="OpenAI and TRL columns: messages: [{role: user|assistant|system, content: text or parts}], "
    "or prompt and completion; image or images name pictures for image parts without a name, for <image> markers, "
    "or for the front; videos names videos (a file or a list of frames each) in the same way, with <video>.",
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
