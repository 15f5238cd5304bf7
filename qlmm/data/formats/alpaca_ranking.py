"""Alpaca's columns with two answers: ``instruction``, ``input``, ``chosen``, ``rejected``, ``images``.

Facts: LLaMA-Factory's data format documentation.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from qlmm.data.contract import Format, Media, RawRow, present
from qlmm.data.formats import messages
from qlmm.data.formats.alpaca import asked, with_history
from qlmm.data.sample import Turn

__all__ = ["FORMAT"]

SIDES = ("chosen", "rejected")


def _parse(row: RawRow, images: Media) -> list[Turn]:
    answers = {side: row[side] for side in SIDES}
    return messages.read_messages(with_history(row, asked(row, ("instruction", "input")), answers), row, images)


FORMAT = Format(
    doc="Alpaca's columns with two answers: instruction, input?, chosen, rejected, history?, system?, image or images.",
    example={"instruction": "What is this?", "chosen": "A cat.", "rejected": "A dog.", "images": ["cat.jpg"]},
    required=("instruction", *SIDES),
    detect=lambda row: present(row, "instruction") and any(isinstance(row.get(side), str) for side in SIDES),
    parse=_parse,
    kind="preference",
    media=messages.FORMAT.media,
)
