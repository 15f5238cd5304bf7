"""TRL's columns of unpaired feedback: ``prompt``, ``completion`` and a ``label``, true or false, with ``images``.

Facts: TRL 1.16's dataset formats. Prompt and completion are text or messages; pictures and videos are read as in
``messages``. The label says whether the completion is desirable.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlmm.data.contract import BadRow, Format, present
from qlmm.data.formats.messages import list_of, read_messages
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.sample import Turn

__all__ = ["FORMAT"]


def _parse(row: Mapping[str, Any], images: ImageRoot) -> list[Turn]:
    prompt, completion = list_of(row["prompt"], "prompt", "user"), list_of(row["completion"], "completion", "assistant")
    if len(completion) != 1:
        raise BadRow(f"`completion` has {len(completion)} messages, where one answer belongs")
    return read_messages([*prompt, *completion], row, images)


def _detect(row: Mapping[str, Any]) -> bool:
    return present(row, "completion") and not present(row, "conversations") and not present(row, "messages")


FORMAT = Format(
    doc="TRL's columns of unpaired feedback: prompt and completion, each text or [{role: user|assistant|system, "
    "content: text or parts}], and label: true where the completion is desirable, else false; image, images and videos "
    "as in messages.",
    example={
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}],
        "completion": [{"role": "assistant", "content": "A cat."}],
        "label": True,
        "images": ["cat.jpg"],
    },
    required=("prompt", "completion"),
    detect=_detect,
    parse=_parse,
    kind="feedback",
    verdict="label",
)
