"""Pictures with a text each: csv, JSON lines, parquet, or a picture folder with metadata.

Without an ``instruction`` column the user's turn is the picture alone, as stage 1 of LLaVA and mPLUG-Owl needs it.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlmm.data.contract import BadRow, Format, present
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.sample import Part, Turn

__all__ = ["FORMAT"]

PICTURE = ("image", "file_name", "images")
TEXT = ("text", "caption")


def _first(row: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((row[key] for key in keys if present(row, key)), None)


def _parse(row: Mapping[str, Any], images: ImageRoot) -> list[Turn]:
    value = _first(row, PICTURE)
    pictures = value if isinstance(value, (list, tuple)) else [value]
    if not pictures:
        raise BadRow("no picture")
    caption, instruction = _first(row, TEXT), row.get("instruction") or ""
    for key, text in (("caption", caption), ("instruction", instruction)):
        if not isinstance(text, str):
            raise BadRow(f"the {key} is {type(text).__name__}, not text")
    asked: list[Part] = [images.ref(picture) for picture in pictures]
    return [Turn("user", (*asked, instruction.strip())), Turn("assistant", (caption.strip(),))]


def _detect(row: Mapping[str, Any]) -> bool:
    text = _first(row, TEXT)
    owl = "task_type" in row or (isinstance(text, str) and "\nAI: " in text)
    return _first(row, PICTURE) is not None and text is not None and not owl


FORMAT = Format(
    doc="A picture column (image, images or file_name), a text column (text or caption), "
    "and an optional instruction column.",
    example={"image": "cat.jpg", "caption": "A cat."},
    required=("|".join(PICTURE), "|".join(TEXT)),
    detect=_detect,
    parse=_parse,
)
