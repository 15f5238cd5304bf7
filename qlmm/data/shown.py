"""Pictures and videos that rows name beside their text, and where a conversation shows them: one rule for all formats.

- A part that names its picture shows it. A part without a name takes the next picture of the row's columns.
- Where user turns have one ``<image>`` per picture that is left, these are the places. Without any, pictures come
  first, as TRL puts them. Another number is a bad row.
- A marker beside a part for the same picture is its place; a column that repeats the parts' pictures adds none.
- In a row that shows nothing, a marker is text.

Videos likewise, with ``<video>``; LLaVA-Video (arXiv 2410.02713) writes ``<image>`` for them. Line ends around a marker
belong to the marker: the chat template sets picture and text apart.

Usage: ``turns = placed([RawTurn("user", ("<image>What?",)), ...], beside(row, images))``
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from qlmm.data.contract import Media, RawRow, present
from qlmm.data.errors import BadRow
from qlmm.data.row_keys import OTHER_NAMES, PICTURES
from qlmm.data.sample import ImageRef, Part, Role, Turn

__all__ = ["Column", "RawTurn", "Shown", "beside", "pictures", "placed"]

NAMES = {"image": "pictures", "video": "videos"}

Kind = Literal["image", "video"]


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture, or a video as the pictures it is shown as."""

    kind: Kind
    frames: tuple[ImageRef, ...]


@dataclass(frozen=True, slots=True)
class RawTurn:
    """A turn whose markers are not read yet."""

    role: Role
    pieces: tuple[str | Shown, ...]
    learned: bool = True

    def markers(self, marker: str) -> int:
        """How often its text has a marker."""
        return sum(piece.count(marker) for piece in self.pieces if isinstance(piece, str))

    def shows(self, kind: Kind) -> list[Shown]:
        """Its pictures, or its videos."""
        return [piece for piece in self.pieces if isinstance(piece, Shown) and piece.kind == kind]


@dataclass(slots=True)
class Column:
    """The pictures, or videos, that a row names beside its text, and how many of them parts have taken."""

    kind: Kind
    given: Sequence[Shown]
    taken: int = 0
    named: list[Shown] = field(default_factory=list)

    def next(self) -> Shown:
        """The next one, for a part without a name of its own."""
        if self.taken == len(self.given):
            raise BadRow(f"more {self.kind} parts than {NAMES[self.kind]}")
        self.taken += 1
        return self.given[self.taken - 1]

    def shown(self, value: object, images: Media) -> Shown:
        """What a part shows that names it itself."""
        frames = images.video(value) if self.kind == "video" else (images.ref(value),)
        self.named.append(Shown(self.kind, frames))
        return self.named[-1]

    def left(self) -> Sequence[Shown]:
        """Those that no part shows."""
        left, count = self.given[self.taken :], len(self.given)
        repeated = set(left) & set(self.named)
        if len(repeated) == len(set(left)):
            return ()
        if self.taken:
            raise BadRow(f"{self.taken} {self.kind} parts for {count} {NAMES[self.kind]}")
        if repeated:
            raise BadRow(f"{len(repeated)} of {count} {NAMES[self.kind]} stand in a part, too: name each of them once")
        return left


def pictures(row: RawRow, images: Media) -> list[ImageRef]:
    """The pictures of a row's columns."""
    first, second = (images.refs(row.get(key)) for key in PICTURES)
    if first and second and first != second:
        raise BadRow("`image` and `images` name different pictures: keep one of them")
    if first or second:
        return first or second
    return next((refs for key in OTHER_NAMES if present(row, key) and (refs := images.refs(row[key]))), [])


def beside(row: RawRow, images: Media) -> dict[str, Column]:
    """The videos and the pictures of a row's columns, by the type of the part that takes one."""
    videos = images.videos(row.get("videos"))
    if not videos and row.get("video"):
        videos = [images.video(row["video"])]
    return {
        "video": Column("video", [Shown("video", frames) for frames in videos]),
        "image": Column("image", [Shown("image", (picture,)) for picture in pictures(row, images)]),
    }


def placed(raw: Sequence[RawTurn], columns: Mapping[str, Column]) -> list[Turn]:
    """The turns of a conversation, with everything that its row shows in its place."""
    shows_picture = bool(columns["image"].given or columns["image"].named)
    for column in columns.values():
        marker = f"<{column.kind}>"
        if column.kind == "video" and column.given and not shows_picture and not _asked(raw, marker):
            marker = "<image>"
        raw = _from_column(raw, column.left(), marker) or _beside_parts(raw, column.kind, marker)
    turns = [Turn(one.role, tuple(_flat(one.pieces)), one.learned) for one in raw]
    if not any(isinstance(part, ImageRef) for turn in turns for part in turn.parts):
        _refuse_bare_markers(raw)
    return turns


def _asked(raw: Sequence[RawTurn], marker: str) -> int:
    return sum(one.markers(marker) for one in raw if one.role == "user")


def _flat(pieces: Sequence[str | Shown]) -> Iterator[Part]:
    for piece in pieces:
        if isinstance(piece, str):
            yield piece
        else:
            yield from piece.frames


def _from_column(raw: Sequence[RawTurn], left: Sequence[Shown], marker: str) -> list[RawTurn]:
    """The turns with what is left of a column in them, at its markers or first; none where nothing is left."""
    if not left:
        return []
    users = [place for place, one in enumerate(raw) if one.role == "user"]
    markers = _asked(raw, marker)
    if markers == len(left):
        rest = iter(left)
        return [_at_markers(one, marker, rest) if one.role == "user" else one for one in raw]
    if markers or not users:
        raise BadRow(f"{markers} {marker} markers for {len(left)} {NAMES[left[0].kind]}")
    if any(one.markers(marker) for one in raw):
        raise BadRow(f"{marker} outside a user turn: only users show pictures")
    first = raw[users[0]]
    shown = replace(first, pieces=(*left, *first.pieces))
    return [*raw[: users[0]], shown, *raw[users[0] + 1 :]]


def _beside_parts(raw: Sequence[RawTurn], kind: Kind, marker: str) -> list[RawTurn]:
    """The turns of a row whose parts show everything: a user's markers there are the places of that turn's parts."""
    if not any(one.shows(kind) for one in raw):
        return list(raw)
    return [_at_own_markers(one, kind, marker) if one.role == "user" else one for one in raw]


def _at_own_markers(one: RawTurn, kind: Kind, marker: str) -> RawTurn:
    own, markers = one.shows(kind), one.markers(marker)
    if not markers:
        return one
    if markers != len(own):
        raise BadRow(f"{markers} {marker} markers for {len(own)} {NAMES[kind]} in one turn")
    return _at_markers(replace(one, pieces=tuple(piece for piece in one.pieces if piece not in own)), marker, iter(own))


def _at_markers(one: RawTurn, marker: str, rest: Iterator[Shown]) -> RawTurn:
    """A turn cut at its markers, without line ends around them, and without blank space between them and an end."""
    if not one.markers(marker):
        return one
    pieces: list[str | Shown] = []
    for piece in one.pieces:
        if isinstance(piece, Shown):
            pieces.append(piece)
            continue
        head, *tails = piece.split(marker)
        pieces.append(head.rstrip("\r\n") if tails else head)
        for tail in tails:
            pieces += [next(rest), tail.strip("\r\n")]
    for place in range(len(pieces)):
        pieces[place] = _trimmed(pieces, place)
    return replace(one, pieces=tuple(pieces))


def _trimmed(pieces: Sequence[str | Shown], place: int) -> str | Shown:
    piece = pieces[place]
    if isinstance(piece, str) and not any(isinstance(before, str) and before for before in pieces[:place]):
        piece = piece.lstrip()
    if isinstance(piece, str) and not any(isinstance(after, str) and after for after in pieces[place + 1 :]):
        piece = piece.rstrip()
    return piece


def _refuse_bare_markers(raw: Sequence[RawTurn]) -> None:
    """Refuse questions of markers alone in a row that shows nothing."""
    for number, one in enumerate(raw, 1):
        text = "".join(piece for piece in one.pieces if isinstance(piece, str))
        if one.role == "user" and text.strip() and not text.replace("<image>", "").replace("<video>", "").strip():
            raise BadRow(f"a marker and nothing else in turn {number}, and the row shows no picture")
