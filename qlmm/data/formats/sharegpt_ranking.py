"""LLaMA-Factory's ranking rows: ``conversations`` up to a question, then ``chosen`` and ``rejected``, ``images``.

Facts: LLaMA-Factory's data format documentation. Pictures, videos and ``system`` as in ``llava``.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from qlmm.data.contract import Format, Media, RawRow, present
from qlmm.data.formats.llava import conversation, spoken
from qlmm.data.row_keys import MEDIA
from qlmm.data.sample import Turn
from qlmm.data.shown import beside, placed

__all__ = ["FORMAT"]


def _parse(row: RawRow, images: Media) -> list[Turn]:
    answers = [spoken(row[side], f"`{side}`") for side in ("chosen", "rejected")]
    return placed([*conversation(row), *answers], beside(row, images))


def _detect(row: RawRow) -> bool:
    return isinstance(row.get("conversations"), list) and (present(row, "chosen") or present(row, "rejected"))


FORMAT = Format(
    doc="LLaMA-Factory's ranking rows: {conversations: [{from: human|gpt|system, value}], chosen: {from: gpt, value}, "
    "rejected: {from: gpt, value}, images?: list, videos?: list, system?}; <image> in a human turn is the place of a "
    "picture.",
    example={
        "conversations": [{"from": "human", "value": "<image>What is this?"}],
        "chosen": {"from": "gpt", "value": "A cat."},
        "rejected": {"from": "gpt", "value": "A dog."},
        "images": ["cat.jpg"],
    },
    required=("conversations", "chosen", "rejected"),
    detect=_detect,
    parse=_parse,
    kind="preference",
    # A whole conversation wins over a prompt beside it.
    precedence=2,
    media=MEDIA,
)
