"""RLHF-V's rows: ``text`` is an object, or JSON, of ``question``, ``chosen`` and ``rejected``; ``image`` the picture.

Facts: openbmb/RLHF-V-Dataset (arXiv 2312.00849).

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from collections.abc import Mapping

from qlmm.data.contract import Format, Media, RawRow, unpacked
from qlmm.data.errors import BadRow
from qlmm.data.formats import messages
from qlmm.data.sample import Turn

__all__ = ["FORMAT"]

ROLES = {"question": "user", "chosen": "assistant", "rejected": "assistant"}


def _pair(row: RawRow) -> Mapping[str, object]:
    found = unpacked(row.get("text"))
    return found if isinstance(found, Mapping) else {}


def _parse(row: RawRow, images: Media) -> list[Turn]:
    pair = _pair(row)
    for key in ROLES:
        if not isinstance(pair.get(key), str):
            raise BadRow(f"`text` has no text `{key}`")
    return messages.read_messages([{"role": role, "content": pair[key]} for key, role in ROLES.items()], row, images)


FORMAT = Format(
    doc="RLHF-V's columns: image, and text: {question, chosen, rejected}, as an object or as JSON.",
    example={
        "image": "cat.jpg",
        "text": '{"question": "What is this?", "chosen": "A cat.", "rejected": "A dog."}',
    },
    required=("text",),
    detect=lambda row: {"chosen", "rejected"} <= set(_pair(row)),
    parse=_parse,
    kind="preference",
    media=messages.FORMAT.media,
)
