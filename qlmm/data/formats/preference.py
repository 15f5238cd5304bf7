"""TRL's preference columns: ``prompt``, ``chosen`` and ``rejected``, as text or messages, with ``image`` or ``images``.

Facts: TRL 1.16's dataset formats and ``extract_prompt``. Without a prompt of messages, ``chosen`` and ``rejected`` may
both hold the whole conversation; the messages they begin with alike are then the prompt, whatever a text ``prompt``
repeats of it. Pictures and videos are read as in ``messages``.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from qlmm.data.contract import BadRow, Format, present
from qlmm.data.formats.messages import list_of, read_messages
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.sample import Turn

__all__ = ["FORMAT"]


def _parse(row: Mapping[str, Any], images: ImageRoot) -> list[Turn]:
    chosen, rejected = (list_of(row[side], side, "assistant") for side in ("chosen", "rejected"))
    if _whole(chosen) and _whole(rejected) and not isinstance(row.get("prompt"), (list, tuple)):
        alike = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))))
        # An answer that both share is no prompt: it is told as such.
        alike = min(alike, len(chosen) - 1, len(rejected) - 1)
        prompt, chosen, rejected = chosen[:alike], chosen[alike:], rejected[alike:]
    elif present(row, "prompt"):
        prompt = list_of(row["prompt"], "prompt", "user")
    else:
        raise BadRow("no `prompt`, and `chosen` and `rejected` do not both begin with it")
    return read_messages([*prompt, _only(chosen, "chosen"), _only(rejected, "rejected")], row, images)


def _whole(messages: Sequence[Any]) -> bool:
    """Whether messages hold more than an answer."""
    return bool(messages) and isinstance(messages[0], Mapping) and messages[0].get("role") != "assistant"


def _only(answer: Sequence[Any], side: str) -> Any:
    if len(answer) != 1:
        raise BadRow(f"`{side}` has {len(answer)} messages after the prompt, where one answer belongs")
    return answer[0]


def _detect(row: Mapping[str, Any]) -> bool:
    whole = any(isinstance(row.get(side), list) for side in ("chosen", "rejected"))
    return (present(row, "prompt") or whole) and not present(row, "conversations")


FORMAT = Format(
    doc="TRL's preference columns: prompt, chosen and rejected, each text or [{role: user|assistant|system, content: "
    "text or parts}]; the prompt may instead begin both chosen and rejected; image, images and videos as in messages.",
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
)
