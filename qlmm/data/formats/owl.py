"""mPLUG-Owl's JSON lines: the whole rendered conversation in ``text``, its pictures in ``image``.

Facts: mPLUG-Owl version 1 (arXiv 2304.14178) and its released training code. The text is a system line, then lines
that open with ``Human: `` and ``AI: ``, with ``<image>`` in a Human line of its own. A speaker is recognised at the
start of a line only; the original code splits at the bare markers, so that ``AI: `` inside an answer opens a second
one. ``task_type`` and ``prompt`` are accepted and not used.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

import re

from qlmm.data.contract import Format, Media, RawRow
from qlmm.data.errors import BadRow
from qlmm.data.row_keys import MEDIA
from qlmm.data.sample import Turn
from qlmm.data.shown import RawTurn, beside, placed

__all__ = ["FORMAT"]

SPEAKER = re.compile(r"(?:\A|\n)(Human|AI): ")


def _parse(row: RawRow, images: Media) -> list[Turn]:
    text = row["text"]
    if not isinstance(text, str):
        raise BadRow("`text` is not text")
    system, *lines = SPEAKER.split(text)
    raw = [RawTurn("system", (system,))] if system.strip() else []
    for speaker, line in zip(lines[::2], lines[1::2], strict=True):
        if speaker == "AI":
            raw.append(RawTurn("assistant", (line,)))
        elif raw and raw[-1].role == "user":  # Human lines in a row are one turn
            raw[-1] = RawTurn("user", (f"{raw[-1].pieces[0]}\n{line}",))
        else:
            raw.append(RawTurn("user", (line,)))
    return placed(raw, beside(row, images))


def _detect(row: RawRow) -> bool:
    text = row.get("text")
    return isinstance(text, str) and ("task_type" in row or bool(re.search(r"(?:\A|\n)AI: ", text)))


FORMAT = Format(
    doc="mPLUG-Owl's JSON lines: {text: whole conversation in Human: and AI: lines, image?: list, task_type?, "
    "prompt?}; <image> in a Human line is the place of a picture.",
    example={
        "text": "A talk between a human and an assistant.\nHuman: <image>\nHuman: What is this?\nAI: A cat.",
        "image": ["cat.jpg"],
        "task_type": "llava_sft",
    },
    required=("text",),
    detect=_detect,
    parse=_parse,
    # A text with a speaker on every line is more than a caption.
    precedence=1,
    media=MEDIA,
)
