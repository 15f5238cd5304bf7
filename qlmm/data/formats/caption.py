"""Pictures with a text each: csv, JSON lines, parquet, or a picture folder with metadata.

Without an ``instruction`` column the user's turn is the picture alone, as stage 1 of LLaVA and mPLUG-Owl needs it.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from qlmm.data.contract import Format, Media, RawRow, present
from qlmm.data.errors import BadRow
from qlmm.data.row_keys import OTHER_NAMES, PICTURES
from qlmm.data.sample import Turn
from qlmm.data.shown import pictures
from qlmm.data.tracked import named

__all__ = ["FORMAT"]

PICTURE = (*PICTURES, *OTHER_NAMES)
TEXT = ("text", "caption")


def _first(row: RawRow, keys: tuple[str, ...]) -> object:
    return next((row[key] for key in keys if present(row, key)), None)


def _parse(row: RawRow, images: Media) -> list[Turn]:
    shown, instruction = pictures(row, images), _text("instruction", _first(row, ("instruction",)) or "").strip()
    if not shown and not instruction:
        raise BadRow("no picture and no `instruction`: there is nothing to answer")
    caption = _text("caption", _first(row, TEXT)).strip()
    return [Turn("user", (*shown, instruction)), Turn("assistant", (caption,))]


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadRow(f"the {key} is {named(value)}, not text")
    return value


FORMAT = Format(
    doc="A picture column (image, images or file_name), a text column (text or caption), "
    "and an optional instruction column.",
    example={"image": "cat.jpg", "caption": "A cat."},
    required=("|".join(PICTURE), "|".join(TEXT)),
    detect=lambda row: any(key in row for key in PICTURE) and _first(row, TEXT) is not None,
    parse=_parse,
    media=PICTURE,
)
