"""ms-swift's columns of one question and its answer: ``query``, ``response``, ``history``, ``system``, ``images``.

Facts: ms-swift's documentation of custom data sets.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from qlmm.data.contract import MARK, Format, Media, RawRow, present
from qlmm.data.formats import messages
from qlmm.data.formats.alpaca import asked, with_history
from qlmm.data.sample import Turn

__all__ = ["FORMAT"]


def _parse(row: RawRow, images: Media) -> list[Turn]:
    entries = with_history(row, asked(row, ("query",)), {"response": row["response"]})
    return messages.read_messages(entries, row, images)


FORMAT = Format(
    doc="ms-swift's columns: query, response, and history?: [[question, answer]], system?, image or images, videos.",
    example={"query": "<image>What is this?", "response": "A cat.", "images": ["cat.jpg"]},
    required=("query", "response"),
    detect=lambda row: present(row, "query") and present(row, "response"),
    parse=_parse,
    media=messages.FORMAT.media,
    answered=lambda row: row if present(row, "response") or "query" not in row else {**row, "response": MARK},
)
