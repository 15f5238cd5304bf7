"""LLaVA's JSON: ``conversations`` of human and gpt turns, with ``<image>`` where a picture stands, ``<video>`` a video.

Facts: LLaVA (arXiv 2304.08485), its fine-tuning data files; LLaMA-Factory writes ``images`` and ``videos``. Where
pictures and videos stand: `qlmm.data.shown`.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qlmm.data.contract import MARK, Format, Media, RawRow, closed, role_of
from qlmm.data.errors import BadRow
from qlmm.data.row_keys import MEDIA, learned
from qlmm.data.sample import Turn
from qlmm.data.shown import RawTurn, beside, placed

__all__ = ["FORMAT", "answered", "conversation", "spoken"]

SPEAKERS = "human, gpt, system"


def _parse(row: RawRow, images: Media) -> list[Turn]:
    return placed(conversation(row), beside(row, images))


def conversation(row: RawRow) -> list[RawTurn]:
    """The turns of ``conversations``, questions without blank space at their ends."""
    entries = row["conversations"]
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise BadRow("`conversations` is not a list of turns")
    return [spoken(entry, f"turn {number}") for number, entry in enumerate(entries, 1)]


def spoken(entry: object, place: str) -> RawTurn:
    """The turn of a ``{from, value}`` or ``{role, content}``; a BadRow names its place otherwise."""
    text = entry.get("value", entry.get("content")) if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or not isinstance(text, str):
        raise BadRow(f"{place} is not {{from, value}} with a text value")
    role = role_of(entry)
    if role is None:
        raise BadRow(f"unknown speaker `{entry.get('from', entry.get('role'))}` in {place}: known are {SPEAKERS}")
    return RawTurn(role, (text.strip() if role == "user" else text,), learned(entry, role, place))


def answered(row: RawRow) -> RawRow:
    """The row with a mark for an answer, where its conversation ends with a question."""
    return closed(row, "conversations", {"from": "gpt", "value": MARK})


FORMAT = Format(
    doc="LLaVA's JSON or JSON lines: {id?, image? or images?: name or list, video?: name or list of frames, "
    "videos?: list, system?, conversations: [{from: human|gpt|system, value}]}. <image> in a human turn is the place "
    "of a picture, <video> of a video; without markers they come first. A turn with loss: false is not learned.",
    example={
        "id": "1",
        "image": "cat.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is this?"},
            {"from": "gpt", "value": "A cat."},
        ],
    },
    required=("conversations",),
    detect=lambda row: isinstance(row.get("conversations"), list),
    parse=_parse,
    media=MEDIA,
    answered=answered,
)
