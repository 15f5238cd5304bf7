"""LLaMA-Factory's rows of feedback: ``conversations`` or ``messages`` that end with the answer, and its ``kto_tag``.

Facts: LLaMA-Factory's data format documentation. The data set that it ships has its tag in ``label``.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from qlmm.data.contract import Format, Media, RawRow, present
from qlmm.data.formats import llava, messages
from qlmm.data.row_keys import MEDIA
from qlmm.data.sample import Turn

__all__ = ["FORMAT"]


def _parse(row: RawRow, images: Media) -> list[Turn]:
    return list((llava if present(row, "conversations") else messages).FORMAT.parse(row, images))


def _detect(row: RawRow) -> bool:
    judged = present(row, "kto_tag") or isinstance(row.get("label"), bool)
    return judged and (present(row, "conversations") or present(row, "messages"))


FORMAT = Format(
    doc="LLaMA-Factory's rows of feedback: {conversations: [{from: human|gpt|system, value}] or messages: [{role, "
    "content}], kto_tag: true where the last answer is desirable, else false, images?: list, videos?: list, system?}; "
    "the tag may be called label.",
    example={
        "conversations": [{"from": "human", "value": "<image>What is this?"}, {"from": "gpt", "value": "A cat."}],
        "kto_tag": True,
        "images": ["cat.jpg"],
    },
    required=("conversations|messages",),
    detect=_detect,
    parse=_parse,
    kind="feedback",
    verdict="kto_tag|label",
    # A whole conversation wins over a completion beside it.
    precedence=1,
    media=MEDIA,
    answered=lambda row: llava.answered(messages.answered(row)),
)
