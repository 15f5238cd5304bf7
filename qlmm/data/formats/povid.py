"""POVID's rows: ``conversations`` with the preferred answers, ``rejected_conversations`` with the others.

Facts: YiyangAiLab/POVID_preference_data_for_VLLMs (arXiv 2402.11411). The last answers are compared; what is before
them must be the same in both.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from qlmm.data.contract import Format, Media, RawRow, present
from qlmm.data.errors import BadRow
from qlmm.data.formats import llava
from qlmm.data.sample import Turn

__all__ = ["FORMAT"]

OTHER = "rejected_conversations"


def _parse(row: RawRow, images: Media) -> list[Turn]:
    if not isinstance(row[OTHER], (list, tuple)) or not row[OTHER]:
        raise BadRow(f"`{OTHER}` is not a list of turns")
    chosen = llava.FORMAT.parse(row, images)
    shown = {key: row[key] for key in llava.FORMAT.media if key in row}
    rejected = llava.FORMAT.parse({**shown, "conversations": row[OTHER]}, images)
    if not chosen or chosen[:-1] != rejected[:-1]:
        raise BadRow(f"`conversations` and `{OTHER}` differ before their last answer: there is no common question")
    return [*chosen, rejected[-1]]


FORMAT = Format(
    doc="POVID's rows: conversations and rejected_conversations: [{from: human|gpt, value}], alike but for the last "
    "answer, and image as in llava.",
    example={
        "image": "cat.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is this?"},
            {"from": "gpt", "value": "A cat."},
        ],
        "rejected_conversations": [
            {"from": "human", "value": "<image>\nWhat is this?"},
            {"from": "gpt", "value": "A dog."},
        ],
    },
    required=("conversations", OTHER),
    detect=lambda row: present(row, OTHER),
    parse=_parse,
    kind="preference",
    precedence=3,
    media=llava.FORMAT.media,
)
