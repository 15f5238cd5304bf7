"""LLaMA-Factory's ranking rows: ``conversations`` up to a question, then ``chosen`` and ``rejected``, ``images``.

Facts: LLaMA-Factory's data format documentation. Every picture of ``images`` has its ``<image>`` in a human turn, every
video of ``videos`` its ``<video>``; ``system`` may be the system turn.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from qlmm.data.contract import Format, Media, RawRow, present
from qlmm.data.errors import BadRow
from qlmm.data.formats.llava import spoken_turn
from qlmm.data.formats.messages import MEDIA, read_messages
from qlmm.data.sample import Turn

__all__ = ["FORMAT", "shared"]


def _parse(row: RawRow, images: Media) -> list[Turn]:
    answers = [_message(row[side], f"`{side}`") for side in ("chosen", "rejected")]
    return read_messages([*shared(row), *answers], row, images)


def shared(row: RawRow) -> list[RawRow]:
    """The messages of ``conversations`` and ``system``, with one marker per picture and video of the row."""
    if not isinstance(row["conversations"], (list, tuple)):
        raise BadRow("`conversations` is not a list of turns")
    messages = [_message(entry, f"turn {number}") for number, entry in enumerate(row["conversations"], 1)]
    for key in ("images", "videos"):
        given, marker = row.get(key) or [], f"<{key[:-1]}>"
        markers = sum(one["content"].count(marker) for one in messages if one["role"] == "user")
        shown = len(given) if isinstance(given, (list, tuple)) else 1
        # Without videos, the word is the HTML tag.
        if markers != shown and (shown or key == "images"):
            raise BadRow(f"{markers} {marker} markers for {shown} {'pictures' if key == 'images' else key}")
    system: list[RawRow] = [{"role": "system", "content": row["system"]}] if present(row, "system") else []
    return [*system, *messages]


def _message(entry: object, place: str) -> dict[str, str]:
    role, text = spoken_turn(entry, place)
    return {"role": role, "content": text}


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
