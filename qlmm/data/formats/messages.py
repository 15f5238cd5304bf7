"""The columns of OpenAI and TRL: ``messages`` (or ``prompt`` and ``completion``) with ``image`` or ``images``.

Content is text, or a list of text, image and image_url parts. An image part without a name of its own takes the next
picture of the column. Pictures of the column with no place in the text come first, as TRL puts them; where the texts of
user turns hold exactly one ``<image>`` per picture, these are the places.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qlmm.data.contract import BadRow, Format, present
from qlmm.data.paths import ImageRoot
from qlmm.data.sample import ImageRef, Part, Role, Turn

__all__ = ["FORMAT"]

MARKER = "<image>"
ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system"}
Next = Callable[[], ImageRef]


def _parse(row: Mapping[str, Any], images: ImageRoot) -> list[Turn]:
    column = [*images.refs(row.get("image")), *images.refs(row.get("images"))]
    left = iter(column)
    entries = _entries(row)
    turns = [_turn(entry, number, images, left) for number, entry in enumerate(entries, 1)]
    return _placed(turns, list(left), len(column))


def _entries(row: Mapping[str, Any]) -> Sequence[Any]:
    """The messages of a row, whichever columns hold them."""
    if present(row, "messages"):
        return _list_of(row["messages"], "messages", "user")
    if not present(row, "completion"):
        raise BadRow("`prompt` without `completion`: the row has no answer")
    prompt = _list_of(row["prompt"], "prompt", "user")
    return [*prompt, *_list_of(row["completion"], "completion", "assistant")]


def _list_of(value: Any, key: str, role: Role) -> Sequence[Any]:
    if isinstance(value, str) and key != "messages":
        return [{"role": role, "content": value}]
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"`{key}` is not a list of messages")
    return value


def _turn(entry: Any, number: int, images: ImageRoot, left: Iterator[ImageRef]) -> Turn:
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
    return Turn(ROLES[role], tuple(_part(part, number, images, left) for part in content))


def _part(part: Any, number: int, images: ImageRoot, left: Iterator[ImageRef]) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image":
        value = next((part[key] for key in ("image", "path", "url") if present(part, key)), None)
        return images.ref(value) if value is not None else _next(left)
    if kind == "image_url":
        value = part.get("image_url")
        return images.ref(value.get("url") if isinstance(value, Mapping) else value)
    raise BadRow(f"a part of message {number} is neither text, image nor image_url")


def _next(left: Iterator[ImageRef]) -> ImageRef:
    picture = next(left, None)
    if picture is None:
        raise BadRow("more image parts than pictures")
    return picture


def _placed(turns: list[Turn], left: list[ImageRef], given: int) -> list[Turn]:
    """The turns with the column's pictures in them: at their markers, or first."""
    if not left:
        return turns
    if len(left) < given:
        raise BadRow(f"{given - len(left)} image parts for {given} pictures")
    users = [place for place, turn in enumerate(turns) if turn.role == "user"]
    markers = sum(turns[place].text.count(MARKER) for place in users)
    if not users or markers not in (0, len(left)):
        raise BadRow(f"{markers} {MARKER} markers for {len(left)} pictures")
    if markers == 0:
        first = turns[users[0]]
        return [*turns[: users[0]], replace(first, parts=(*left, *first.parts)), *turns[users[0] + 1 :]]
    pictures = iter(left)
    return [replace(turn, parts=_at_markers(turn, pictures)) if turn.role == "user" else turn for turn in turns]


def _at_markers(turn: Turn, pictures: Iterator[ImageRef]) -> tuple[Part, ...]:
    parts: list[Part] = []
    for part in turn.parts:
        if not isinstance(part, str):
            parts.append(part)
            continue
        head, *rest = part.split(MARKER)
        parts.append(head.rstrip("\r\n") if rest else head)
        for piece in rest:
            parts += [next(pictures), piece.strip("\r\n")]
    return tuple(parts)


def _detect(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("messages"), list) or (present(row, "prompt") and present(row, "completion"))


FORMAT = Format(
    doc="OpenAI and TRL columns: messages: [{role: user|assistant|system, content: text or parts}], "
    "or prompt and completion; image or images hold pictures for image parts without a name, for <image> markers, "
    "or for the front.",
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
)
