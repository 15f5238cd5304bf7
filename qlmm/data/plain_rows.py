"""Rows as they were understood, written in TRL's columns: what the formats messages, preference and feedback read.

Usage: ``json.dumps(plain(sample, name=lambda picture: "cat.jpg"))``
"""

from __future__ import annotations

from collections.abc import Callable

from qlmm.data.sample import Example, Feedback, ImageRef, Preference, Turn

__all__ = ["plain"]


def plain(row: Example, name: Callable[[ImageRef], str]) -> dict[str, object]:
    """The columns of a row; ``name`` gives each picture its name, a picture of a video is one like any other."""
    if isinstance(row, Preference):
        columns: dict[str, object] = {
            "prompt": [_message(turn) for turn in row.prompt],
            "chosen": [{"role": "assistant", "content": row.chosen}],
            "rejected": [{"role": "assistant", "content": row.rejected}],
        }
    elif isinstance(row, Feedback):
        columns = {
            "prompt": [_message(turn) for turn in row.prompt],
            "completion": [{"role": "assistant", "content": row.completion}],
            "label": row.desirable,
        }
    else:
        columns = {"messages": [_message(turn) for turn in row.turns]}
    return {**columns, "images": [name(ref) for ref in row.images]} if row.images else columns


def _message(turn: Turn) -> dict[str, object]:
    excepted = {} if turn.learned else {"loss": False}
    if not any(isinstance(part, ImageRef) for part in turn.parts):
        return {"role": turn.role, "content": turn.text, **excepted}
    parts = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in turn.parts]
    return {"role": turn.role, "content": parts, **excepted}
