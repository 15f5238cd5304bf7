"""Pictures with a text each: csv, JSON lines, parquet, or a picture folder with metadata.

Without an ``instruction`` column the user's turn is the picture alone, as stage 1 of LLaVA and mPLUG-Owl needs it.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from collections.abc import Sequence

from qlmm.data.contract import Format, Media, RawRow, present
from qlmm.data.errors import BadRow
from qlmm.data.sample import Part, Turn

__all__ = ["FORMAT"]

PICTURE = ("image", "file_name", "images")
TEXT = ("text", "caption")


def _first(row: RawRow, keys: tuple[str, ...]) -> object:
    return next((row[key] for key in keys if present(row, key)), None)


def _parse(row: RawRow, images: Media) -> list[Turn]:
    value = _first(row, PICTURE)
    pictures: Sequence[object] = value if isinstance(value, (list, tuple)) else [value]
    if not pictures:
        raise BadRow("no picture")
    caption, instruction = _text("caption", _first(row, TEXT)), _text("instruction", row.get("instruction") or "")
    asked: list[Part] = [images.ref(picture) for picture in pictures]
    return [Turn("user", (*asked, instruction.strip())), Turn("assistant", (caption.strip(),))]


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadRow(f"the {key} is {type(value).__name__}, not text")
    return value


FORMAT = Format(
    doc="A picture column (image, images or file_name), a text column (text or caption), "
    "and an optional instruction column.",
    example={"image": "cat.jpg", "caption": "A cat."},
    required=("|".join(PICTURE), "|".join(TEXT)),
    detect=lambda row: _first(row, PICTURE) is not None and _first(row, TEXT) is not None,
    parse=_parse,
    media=PICTURE,
)
