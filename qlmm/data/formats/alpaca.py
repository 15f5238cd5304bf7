"""Alpaca's columns with pictures: ``instruction``, ``input``, ``output``, and LLaMA-Factory's ``history``, ``images``.

Facts: tatsu-lab's alpaca data, and LLaMA-Factory's data format documentation.

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from qlmm.data.contract import MARK, Format, Media, RawRow, present, unpacked
from qlmm.data.errors import BadRow
from qlmm.data.formats import messages
from qlmm.data.sample import Turn

__all__ = ["FORMAT", "asked", "with_history"]


def _parse(row: RawRow, images: Media) -> list[Turn]:
    entries = with_history(row, asked(row, ("instruction", "input")), {"output": row["output"]})
    return messages.read_messages(entries, row, images)


def asked(row: RawRow, keys: tuple[str, ...]) -> str:
    """The question that stands in several columns, a line each."""
    found = [row[key] for key in keys if present(row, key)]
    if not all(isinstance(text, str) for text in found):
        raise BadRow(f"{' and '.join(f'`{key}`' for key in keys)} must be text")
    return "\n".join(str(text) for text in found if text)


def with_history(row: RawRow, question: str, answers: RawRow) -> list[RawRow]:
    """Messages: the ``system`` column, the pairs of ``history``, the question, and the answers by their column."""
    raw: list[tuple[str, object]] = [("system", row["system"])] if present(row, "system") and row["system"] else []
    past = unpacked(row["history"]) if present(row, "history") else ()
    for pair in past if isinstance(past, (list, tuple)) else [past]:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise BadRow("`history` is not a list of pairs: question, answer")
        raw += zip(("user", "assistant"), pair, strict=True)
    for key, answer in answers.items():
        if not isinstance(answer, str):
            raise BadRow(f"`{key}` is {type(answer).__name__}, not text")
    return [
        {"role": role, "content": text}
        for role, text in (*raw, ("user", question), *(("assistant", answer) for answer in answers.values()))
    ]


FORMAT = Format(
    doc="Alpaca's columns: instruction, input?, output, and history?: [[question, answer]], system?, image or images.",
    example={"instruction": "What is this?", "input": "", "output": "A cat.", "images": ["cat.jpg"]},
    required=("instruction", "output"),
    detect=lambda row: present(row, "instruction") and present(row, "output"),
    parse=_parse,
    media=messages.FORMAT.media,
    answered=lambda row: row if present(row, "output") or "instruction" not in row else {**row, "output": MARK},
)
