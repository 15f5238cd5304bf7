"""RLAIF-V's columns: ``question``, ``chosen`` and ``rejected`` as text, and the picture in ``image``.

Facts: openbmb/RLAIF-V-Dataset (arXiv 2405.17220), whose parquet files have pictures as ``{bytes, path}``. The picture
comes first unless the question has ``<image>``. Further columns are accepted and not used.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from qlmm.data.contract import Format, Media, RawRow, present
from qlmm.data.errors import BadRow
from qlmm.data.formats.messages import read_messages
from qlmm.data.row_keys import MEDIA
from qlmm.data.sample import Turn
from qlmm.data.tracked import named

__all__ = ["FORMAT"]

ROLES = {"question": "user", "chosen": "assistant", "rejected": "assistant"}


def _parse(row: RawRow, images: Media) -> list[Turn]:
    for key in ROLES:
        if not isinstance(row[key], str):
            raise BadRow(f"`{key}` is {named(row[key])}, not text")
    return read_messages([{"role": role, "content": row[key]} for key, role in ROLES.items()], row, images)


def _detect(row: RawRow) -> bool:
    return present(row, "question") and any(isinstance(row.get(side), str) for side in ("chosen", "rejected"))


FORMAT = Format(
    doc="RLAIF-V's columns: question, chosen, rejected, and image: a name or the encoded picture.",
    example={"question": "What is this?", "chosen": "A cat.", "rejected": "A dog.", "image": "cat.jpg"},
    required=tuple(ROLES),
    detect=_detect,
    parse=_parse,
    kind="preference",
    media=MEDIA,
)
