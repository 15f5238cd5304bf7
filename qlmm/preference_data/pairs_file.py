"""Preference pairs as a file in the format ``preference`` that can be trained on, its pictures in its folder.

Paths in rows may not leave that folder. Other pictures are copied into a folder beside the file, named by content.

Usage: ``write_pairs(Path("pairs.jsonl"), [Preference(prompt, chosen, rejected, origin)])``
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from qlmm.core.files import atomic_write
from qlmm.data.errors import BadRow
from qlmm.data.media.images import decode
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.sample import ImageRef, Preference, Turn

__all__ = ["write_pairs"]


def write_pairs(path: Path, pairs: Iterable[Preference]) -> None:
    """Write all pairs in one step, after their pictures; an error leaves a file that was there before untouched."""
    name = cache(lambda ref: _near(ref, path.parent.resolve()) or _copied(ref, path.with_name(f"{path.name}.images")))
    lines = []
    for pair in pairs:
        row: dict[str, object] = {
            "prompt": [_message(turn) for turn in pair.prompt],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
            **({"images": [name(ref) for ref in pair.images]} if pair.images else {}),
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    atomic_write(path, "".join(lines))


def _near(ref: ImageRef, folder: Path) -> str | None:
    """The name of a picture file in the folder; None where rows may not use it."""
    real = ref.path.resolve() if ref.path is not None and ref.at is None else None
    if real is None or not real.is_relative_to(folder):
        return None
    name = real.relative_to(folder).as_posix()
    try:
        ImageRoot(folder).resolve(name)
    except BadRow:
        return None
    return name


def _copied(ref: ImageRef, folder: Path) -> str:
    """The name of a copy in the folder of pictures, from the folder beside it."""
    content, suffix = _bytes(ref)
    copy = folder / f"{hashlib.sha256(content).hexdigest()[:20]}{suffix}"
    folder.mkdir(exist_ok=True)
    if not copy.is_file():
        atomic_write(copy, content)
    return f"{folder.name}/{copy.name}"


def _message(turn: Turn) -> dict[str, object]:
    if turn.role != "user":
        return {"role": turn.role, "content": turn.text}
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in turn.parts]
    return {"role": turn.role, "content": content}


def _bytes(ref: ImageRef) -> tuple[bytes, str]:
    """A picture's file, or a frame of a video as one, and how its name ends."""
    if ref.at is None:
        content = ref.path.read_bytes() if ref.path is not None else ref.data or b""
        return content, ref.path.suffix.lower() if ref.path is not None else ""
    stream = io.BytesIO()
    decode(ref).save(stream, "PNG")
    return stream.getvalue(), ".png"
