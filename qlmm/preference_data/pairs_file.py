"""Preference pairs as a file that can be trained on where it lies: its pictures are in its folder.

Paths in rows may not leave that folder. Pictures that lie elsewhere are copied into a folder beside the file, under
names that follow from their content.

Usage: ``PairsFile(Path("pairs.jsonl")).write([Preference(prompt, chosen, rejected, origin)])``
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from qlmm.core.files import atomic_write
from qlmm.data.errors import BadRow
from qlmm.data.media.images import decode
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.sample import ImageRef, Part, Preference, Turn

__all__ = ["PairsFile"]


class _Part(TypedDict):
    type: Literal["text", "image"]
    text: NotRequired[str]


class _Message(TypedDict):
    role: str
    content: str | list[_Part]


class _Row(TypedDict):
    prompt: list[_Message]
    chosen: list[_Message]
    rejected: list[_Message]
    images: NotRequired[list[str]]


class PairsFile:
    """A file of pairs in the format ``preference``, and the folder of pictures copied for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pictures = path.with_name(f"{path.name}.images")
        self._names: dict[ImageRef, str] = {}

    def write(self, pairs: Iterable[Preference]) -> None:
        """Write all pairs in one step, after their pictures.

        Raises:
            OSError: when the disk refuses; a file that was there before is then untouched.
        """
        lines = [json.dumps(self._row(pair), ensure_ascii=False) + "\n" for pair in pairs]
        atomic_write(self.path, "".join(lines))

    def _row(self, pair: Preference) -> _Row:
        row: _Row = {
            "prompt": [_message(turn) for turn in pair.prompt],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        if pair.images:
            row["images"] = [self._name(ref) for ref in pair.images]
        return row

    def _name(self, ref: ImageRef) -> str:
        """The picture's name from the file's folder, copied first where it lies elsewhere."""
        if ref not in self._names:
            self._names[ref] = self._near(ref) or self._copied(ref)
        return self._names[ref]

    @cached_property
    def _folder(self) -> Path:
        return self.path.parent.resolve()

    def _near(self, ref: ImageRef) -> str | None:
        """The name of a picture file in the folder; None where rows may not use it."""
        real = ref.path.resolve() if ref.path is not None and ref.at is None else None
        if real is None or not real.is_relative_to(self._folder):
            return None
        name = real.relative_to(self._folder).as_posix()
        try:
            ImageRoot(self._folder).resolve(name)
        except BadRow:
            return None
        return name

    def _copied(self, ref: ImageRef) -> str:
        content, suffix = _bytes(ref)
        name = f"{hashlib.sha256(content).hexdigest()[:20]}{suffix}"
        self.pictures.mkdir(exist_ok=True)
        if not (self.pictures / name).is_file():
            atomic_write(self.pictures / name, content)
        return f"{self.pictures.name}/{name}"


def _message(turn: Turn) -> _Message:
    if turn.role != "user":
        return {"role": turn.role, "content": turn.text}
    return {"role": turn.role, "content": [_part(part) for part in turn.parts]}


def _part(part: Part) -> _Part:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


def _bytes(ref: ImageRef) -> tuple[bytes, str]:
    """A picture's file, or a frame of a video as one, and how its name ends."""
    if ref.at is None:
        content = ref.path.read_bytes() if ref.path is not None else ref.data or b""
        return content, ref.path.suffix.lower() if ref.path is not None else ""
    stream = io.BytesIO()
    decode(ref).save(stream, "PNG")
    return stream.getvalue(), ".png"
