"""The Cauldron's columns: ``texts``, a list of questions with their answers about the pictures in ``images``.

Facts: HuggingFaceM4/the_cauldron (arXiv 2405.02246). The pictures stand before the first question.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from collections.abc import Mapping

from qlmm.data.contract import MARK, Format, Media, RawRow, unpacked
from qlmm.data.errors import BadRow
from qlmm.data.formats import messages
from qlmm.data.sample import Turn

__all__ = ["FORMAT"]


def _texts(row: RawRow) -> list[Mapping[str, object]]:
    found = unpacked(row.get("texts"))
    return found if isinstance(found, list) and all(isinstance(one, Mapping) for one in found) else []


def _parse(row: RawRow, images: Media) -> list[Turn]:
    entries = []
    for number, pair in enumerate(_texts(row), 1):
        if not isinstance(pair.get("user"), str) or not isinstance(pair.get("assistant"), str):
            raise BadRow(f"`texts` {number} is not {{user, assistant}} with two texts")
        entries += [{"role": role, "content": pair[role]} for role in ("user", "assistant")]
    if not entries:
        raise BadRow("`texts` is not a list of {user, assistant}")
    return messages.read_messages(entries, row, images)


def _answered(row: RawRow) -> RawRow:
    texts = _texts(row)
    if not texts or "assistant" in texts[-1]:
        return row
    return {**row, "texts": [*texts[:-1], {**texts[-1], "assistant": MARK}]}


FORMAT = Format(
    doc="The Cauldron's columns: images, and texts: [{user, assistant, source?}].",
    example={"images": ["cat.jpg"], "texts": [{"user": "What is this?", "assistant": "A cat."}]},
    required=("texts",),
    detect=lambda row: any("user" in one for one in _texts(row)),
    parse=_parse,
    media=messages.FORMAT.media,
    answered=_answered,
)
