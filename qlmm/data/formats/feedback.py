"""TRL's columns of unpaired feedback: ``prompt``, ``completion`` and a ``label``, true or false, with ``images``.

Facts: TRL 1.16's dataset formats. Prompt and completion are text or messages, read as in ``messages``.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from qlmm.data.contract import Format, Media, RawRow, present
from qlmm.data.errors import BadRow
from qlmm.data.formats.messages import answered, list_of, read_messages
from qlmm.data.row_keys import MEDIA
from qlmm.data.sample import Turn

__all__ = ["FORMAT"]


def _parse(row: RawRow, images: Media) -> list[Turn]:
    prompt, completion = list_of(row["prompt"], "prompt", "user"), list_of(row["completion"], "completion", "assistant")
    if len(completion) != 1:
        raise BadRow(f"`completion` has {len(completion)} messages, where one answer belongs")
    return read_messages([*prompt, *completion], row, images)


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
    # A label that is neither true nor false is not a verdict: data sets of other tasks have labels, too.
    detect=lambda row: present(row, "completion") and isinstance(row.get("label"), bool),
    parse=_parse,
    kind="feedback",
    verdict="label",
    media=MEDIA,
    answered=answered,
)
