"""A source's rows in one plain file, pictures by name: those below the file where they lie, all others beside it.

Usage: ``convert(load_samples(sources, kind=None).samples, Path("rows.messages.jsonl"))``
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

from qlmm.core.errors import DataError
from qlmm.core.files import atomic_write
from qlmm.data.errors import BadRow
from qlmm.data.media.images import decode
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.plain_rows import plain
from qlmm.data.sample import Example, ImageRef

__all__ = ["convert"]

SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"II*\0": ".tiff"}


def convert(rows: Sequence[Example], target: Path) -> int:
    """Write the rows, and the pictures that are not below the file's folder; the number of pictures written.

    Raises:
        DataError: D012 when the file is there already or cannot be written.
    """
    if target.exists():
        raise DataError.one("D012", f"{target} is there already", help="name another file: --out FILE")
    pictures = _Pictures(target)
    try:
        lines = [json.dumps(plain(row, pictures.name), ensure_ascii=False) for row in rows]
        atomic_write(target, "\n".join(lines) + "\n")
    except OSError as error:
        raise DataError.one("D012", f"{target} cannot be written: {error.strerror or error}") from error
    return len(pictures.written)


class _Pictures:
    """Names of pictures for the rows of a file, which start from the file's folder."""

    def __init__(self, target: Path) -> None:
        self._root = ImageRoot(target.parent)
        self._folder = target.with_name(f"{target.name.split('.')[0]}_pictures")
        self.written: set[str] = set()

    def name(self, ref: ImageRef) -> str:
        """A picture's name; one that does not lie below the file is written beside it, by its content."""
        if ref.path is not None and ref.at is None:
            name = Path(os.path.relpath(ref.path, os.path.realpath(self._root.folder))).as_posix()
            if self._leads_to(name, ref.path):
                return name
        content = _content(ref)
        suffix = next((suffix for magic, suffix in SUFFIXES.items() if content.startswith(magic)), ".image")
        file = self._folder / f"{hashlib.sha256(content).hexdigest()[:32]}{suffix}"
        if file.name not in self.written:
            self._folder.mkdir(parents=True, exist_ok=True)
            atomic_write(file, content)
            self.written.add(file.name)
        return f"{self._folder.name}/{file.name}"

    def _leads_to(self, name: str, path: Path) -> bool:
        """Whether the name is one that rows may have, and finds the picture again."""
        try:
            return self._root.ref(name) == ImageRef(path=path)
        except BadRow:
            return False


def _content(ref: ImageRef) -> bytes:
    """The file of a picture; a picture of a video as PNG."""
    if ref.at is None:
        return ref.path.read_bytes() if ref.path is not None else ref.data or b""
    stream = io.BytesIO()
    decode(ref).save(stream, "PNG")
    return stream.getvalue()
