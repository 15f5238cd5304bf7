"""ms-swift's pairs: a conversation with the chosen answer, and ``rejected_response`` or ``rejected_messages``.

Facts: ms-swift's documentation of custom data sets. The conversation is ``messages``, or ``query`` and ``response``.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qlmm.data.contract import Format, Media, RawRow, absent, present
from qlmm.data.errors import BadRow
from qlmm.data.formats import messages
from qlmm.data.formats.alpaca import asked, with_history
from qlmm.data.sample import Turn

__all__ = ["FORMAT"]

TEXT, WHOLE = "rejected_response", "rejected_messages"


def _parse(row: RawRow, images: Media) -> list[Turn]:
    for key in ("images", "videos"):
        other = row.get(f"rejected_{key}")
        if other and not absent(other) and other != row.get(key):
            raise BadRow(f"`rejected_{key}` are others than `{key}`: both answers must be about the same")
    if present(row, "messages"):
        raw = messages.list_of(row["messages"], "messages", "user")
    else:
        raw = with_history(row, asked(row, ("query",)), {"response": row.get("response")})
    if not raw:
        raise BadRow("no answer: the row has no messages")
    return messages.read_messages([*raw, _rejected(row, raw)], row, images)


def _rejected(row: RawRow, raw: Sequence[object]) -> object:
    """The message of the rejected answer; messages before it must be those of the chosen one."""
    if not present(row, WHOLE):
        if not isinstance(row[TEXT], str):
            raise BadRow(f"`{TEXT}` is {type(row[TEXT]).__name__}, not text")
        return {"role": "assistant", "content": row[TEXT]}
    other = messages.list_of(row[WHOLE], WHOLE, "assistant")
    if not other or not (len(other) == 1 or list(other[:-1]) == list(raw[:-1])):
        raise BadRow(f"`{WHOLE}` and the chosen messages differ before their last answer: there is no common question")
    if not isinstance(other[-1], Mapping):
        raise BadRow(f"`{WHOLE}` is not a list of messages")
    return other[-1]


FORMAT = Format(
    doc="ms-swift's pairs: messages (or query and response) with the chosen answer, and rejected_response: text, or "
    "rejected_messages; image, images and videos as in messages.",
    example={
        "messages": [
            {"role": "user", "content": "<image>What is this?"},
            {"role": "assistant", "content": "A cat."},
        ],
        "rejected_response": "A dog.",
        "images": ["cat.jpg"],
    },
    required=("messages|query", f"{TEXT}|{WHOLE}"),
    detect=lambda row: present(row, TEXT) or present(row, WHOLE),
    parse=_parse,
    kind="preference",
    precedence=3,
    media=messages.FORMAT.media,
)
