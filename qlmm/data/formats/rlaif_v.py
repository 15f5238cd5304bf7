"""RLAIF-V's columns: ``question``, ``chosen`` and ``rejected`` as text, and the picture in ``image``.

Facts: openbmb/RLAIF-V-Dataset (arXiv 2405.17220), whose parquet files hold pictures as ``{bytes, path}``. The picture
comes first unless the question holds ``<image>``. Further columns are accepted and not used.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlmm.data.contract import BadRow, Format, present
from qlmm.data.formats.messages import read_messages
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.sample import Turn

__all__ = ["FORMAT"]

ROLES = {"question": "user", "chosen": "assistant", "rejected": "assistant"}


def _parse(row: Mapping[str, Any], images: ImageRoot) -> list[Turn]:
    for key in ROLES:
        if not isinstance(row[key], str):
            raise BadRow(f"`{key}` is {type(row[key]).__name__}, not text")
    return read_messages([{"role": role, "content": row[key]} for key, role in ROLES.items()], row, images)


def _detect(row: Mapping[str, Any]) -> bool:
    texts = any(isinstance(row.get(side), str) for side in ("chosen", "rejected"))
    return texts and present(row, "question") and not present(row, "prompt") and not present(row, "conversations")


FORMAT = Format(
    doc="RLAIF-V's columns: question, chosen, rejected, and image: a name or the encoded picture.",
    example={"question": "What is this?", "chosen": "A cat.", "rejected": "A dog.", "image": "cat.jpg"},
    required=tuple(ROLES),
    detect=_detect,
    parse=_parse,
    kind="preference",
)
