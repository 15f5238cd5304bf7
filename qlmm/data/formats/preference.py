"""TRL's preference columns: ``prompt``, ``chosen`` and ``rejected``, as text or messages, with ``image`` or ``images``.

Facts: TRL 1.16's dataset formats and ``extract_prompt``. Without a prompt of messages, ``chosen`` and ``rejected`` may
both be whole conversations. Their common first messages are then the prompt, also where a text ``prompt`` repeats it.
Pictures and videos are read as in ``messages``.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

from qlmm.data.contract import Format, Media, RawRow, present
from qlmm.data.errors import BadRow
from qlmm.data.formats.messages import list_of, read_messages
from qlmm.data.row_keys import MEDIA
from qlmm.data.sample import Turn

__all__ = ["FORMAT"]

PROMPTS = ("prompt", "messages")


def _parse(row: RawRow, images: Media) -> list[Turn]:
    chosen, rejected = (list_of(row[side], side, "assistant") for side in ("chosen", "rejected"))
    if _whole(chosen) and _whole(rejected) and not isinstance(row.get("prompt"), (list, tuple)):
        alike = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))))
        # An answer that both share is not a prompt.
        alike = min(alike, len(chosen) - 1, len(rejected) - 1)
        prompt, chosen, rejected = chosen[:alike], chosen[alike:], rejected[alike:]
    elif key := next((key for key in PROMPTS if present(row, key)), None):
        prompt = list_of(row[key], key, "user")
    else:
        raise BadRow("no `prompt`, and `chosen` and `rejected` do not both begin with it")
    return read_messages([*prompt, _only(chosen, "chosen"), _only(rejected, "rejected")], row, images)


def _whole(messages: Sequence[object]) -> bool:
    """Whether messages are more than an answer."""
    return bool(messages) and isinstance(messages[0], Mapping) and messages[0].get("role") != "assistant"


def _only(answer: Sequence[object], side: str) -> object:
    if len(answer) != 1:
        raise BadRow(f"`{side}` has {len(answer)} messages after the prompt, where one answer belongs")
    return answer[0]


def _detect(row: RawRow) -> bool:
    sides = [row[side] for side in ("chosen", "rejected") if present(row, side)]
    return bool(sides) and (any(present(row, key) for key in PROMPTS) or any(isinstance(side, list) for side in sides))


FORMAT = Format(
    doc="TRL's preference columns: prompt, chosen and rejected, each text or [{role: user|assistant|system, content: "
    "text or parts}]; the prompt may be called messages, or instead begin both chosen and rejected; image, "
    "images and videos as in messages.",
    example={
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}],
        "chosen": [{"role": "assistant", "content": "A cat."}],
        "rejected": [{"role": "assistant", "content": "A dog."}],
        "images": ["cat.jpg"],
    },
    required=("chosen", "rejected"),
    detect=_detect,
    parse=_parse,
    kind="preference",
    # A prompt decides, also beside other columns.
    precedence=1,
    media=MEDIA,
)
