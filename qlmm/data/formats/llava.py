"""LLaVA's JSON: ``conversations`` of human and gpt turns, with ``<image>`` where a picture stands, ``<video>`` a video.

Facts: LLaVA (arXiv 2304.08485), its fine-tuning data files; LLaVA-Video (arXiv 2410.02713) writes ``<image>`` for its
videos. Line ends around a marker belong to the marker: the chat template sets picture and text apart.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from qlmm.data.contract import MARK, Format, Media, RawRow, closed
from qlmm.data.errors import BadRow
from qlmm.data.sample import ImageRef, Part, Role, Turn

__all__ = ["FORMAT", "answered", "spoken_turn"]

IMAGE, VIDEO = "<image>", "<video>"
NAMES = {IMAGE: "pictures", VIDEO: "videos"}
Shown = tuple[ImageRef, ...]
ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}


def _parse(row: RawRow, images: Media) -> list[Turn]:
    entries = row["conversations"]
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise BadRow("`conversations` is not a list of turns")
    spoken = [spoken_turn(entry, f"turn {number}") for number, entry in enumerate(entries, 1)]
    shown: dict[str, list[Shown]] = {IMAGE: [(picture,) for picture in images.refs(row.get("image"))]}
    # In a row without a video, the word is the HTML tag.
    if row.get("video"):
        if not shown[IMAGE]:  # LLaVA-Video
            spoken = [(role, text.replace(IMAGE, VIDEO) if role == "user" else text) for role, text in spoken]
        shown = {VIDEO: [images.video(row["video"])], **shown}
    for marker, given in shown.items():
        markers = sum(text.count(marker) for role, text in spoken if role == "user")
        if markers == 0 and len(given) == 1:
            spoken = _first(marker, spoken)
        elif markers != len(given):
            raise BadRow(f"{markers} {marker} markers for {len(given)} {NAMES[marker]}")
    left = {marker: iter(given) for marker, given in shown.items()}
    return [Turn(role, _parts(text, left) if role == "user" else (text,)) for role, text in spoken]


def spoken_turn(entry: object, place: str) -> tuple[Role, str]:
    """Role and text of a ``{from, value}``; a BadRow names its place otherwise."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("value"), str):
        raise BadRow(f"{place} is not {{from, value}} with a text value")
    speaker = entry.get("from")
    if speaker not in ROLES:
        raise BadRow(f"unknown speaker `{speaker}` in {place}: known are {', '.join(ROLES)}")
    return ROLES[speaker], entry["value"]


def _first(marker: str, spoken: list[tuple[Role, str]]) -> list[tuple[Role, str]]:
    first = next((number for number, (role, _) in enumerate(spoken) if role == "user"), None)
    if first is None:
        return spoken
    role, text = spoken[first]
    return [*spoken[:first], (role, f"{marker}\n{text}"), *spoken[first + 1 :]]


def _parts(text: str, left: Mapping[str, Iterator[Shown]]) -> tuple[Part, ...]:
    """A human turn cut at its markers, without blank space at its ends and line ends around markers."""
    pieces: list[Part] = []
    for number, piece in enumerate(re.split(f"({'|'.join(left)})", text.strip())):
        pieces += next(left[piece]) if number % 2 else (piece.strip("\r\n"),)
    for place in range(len(pieces)):
        piece = pieces[place]
        if isinstance(piece, str):
            leading = all(isinstance(before, ImageRef) or not before for before in pieces[:place])
            trailing = all(isinstance(after, ImageRef) or not after for after in pieces[place + 1 :])
            piece = piece.lstrip() if leading else piece
            pieces[place] = piece.rstrip() if trailing else piece
    return tuple(pieces)


def answered(row: RawRow) -> RawRow:
    """The row with a mark for an answer, where its conversation ends with a question."""
    return closed(row, "conversations", speaker=("from", "human"), answer={"from": "gpt", "value": MARK})


FORMAT = Format(
    doc="LLaVA's JSON or JSON lines: {id?, image?: name or list, video?: name or list of frames, "
    "conversations: [{from: human|gpt|system, value}]}. <image> in a human turn is the place of a picture, <video> of "
    "a video; one of them without a marker comes first.",
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
    media=("image", "video"),
    answered=answered,
)
