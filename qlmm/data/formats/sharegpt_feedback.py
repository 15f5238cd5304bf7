"""LLaMA-Factory's rows of feedback: ``conversations`` or ``messages`` that end with the answer, and its ``kto_tag``.

Facts: LLaMA-Factory's data format documentation. Turns of ``conversations`` are {from, value}, with one ``<image>`` in
a human turn per picture of ``images``; ``messages`` are read as the format of that name. The data set that
LLaMA-Factory ships has its tag in ``label``, so that either name is taken.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlmm.data.contract import Format, present
from qlmm.data.formats.messages import list_of, read_messages
from qlmm.data.formats.sharegpt_ranking import shared
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.sample import Turn

__all__ = ["FORMAT"]


def _parse(row: Mapping[str, Any], images: ImageRoot) -> list[Turn]:
    whole = present(row, "conversations")
    return read_messages(shared(row) if whole else list_of(row["messages"], "messages", "user"), row, images)


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
    detect=lambda row: present(row, "conversations") or present(row, "messages"),
    parse=_parse,
    kind="feedback",
    verdict="kto_tag|label",
)
