"""The pictures of a run as they were when it was planned, so that it can go on although some cannot be read any more.

A run that goes on must split, order and measure its rows as it did. All of that follows from their texts, and from size
and copies of their pictures, which are written down here.

Usage: ``Remembered.of(pictures, same, left_out).write(path)``; ``Remembered.read(path).recalled(row.images)``
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from qlmm.core.errors import RunError, Where
from qlmm.core.files import atomic_write
from qlmm.core.secrets import redact
from qlmm.data.sample import ImageRef, Origin, Planned

__all__ = ["NOTHING", "Remembered"]


@dataclass(frozen=True)
class Remembered:
    """What a run that goes on knows of its rows.

    Attributes:
        pictures: every file by its path.
        copies: paths of the same bytes; of inline pictures, their hash.
        left_out: file and line of each row that the run was started without.
    """

    pictures: Mapping[str, Planned] = field(default_factory=dict)
    copies: tuple[tuple[str, ...], ...] = ()
    left_out: frozenset[tuple[str, int]] = frozenset()

    @classmethod
    def of(
        cls, pictures: Mapping[Path, Planned], same: Mapping[ImageRef, ImageRef], left_out: Iterable[Origin]
    ) -> Remembered:
        """What there is to remember of rows that can all be read; ``same`` is that of ``originals``."""
        alike: dict[ImageRef, dict[ImageRef, None]] = {}
        for image, first in same.items():
            alike.setdefault(first, {})[replace(image, at=None)] = None
        return cls(
            pictures={str(path): one for path, one in pictures.items()},
            copies=tuple(tuple(map(_key, images)) for images in alike.values() if len(images) > 1),
            left_out=frozenset((origin.file, origin.line) for origin in left_out),
        )

    @classmethod
    def read(cls, path: Path) -> Remembered:
        """What ``write`` wrote; nothing where there is no such file.

        Raises:
            RunError: C006 when the file is not what was written.
        """
        if not path.is_file():
            return NOTHING
        try:
            return _AS_JSON.validate_json(path.read_bytes())
        except ValidationError as error:
            help = "remove the file; the run then goes on while all of its pictures can be read"
            raise RunError.one("C006", f"{path.name} is not as written", where=Where(str(path)), help=help) from error

    def write(self, path: Path) -> None:
        """Write it down; a name with a key in it is not found again."""
        atomic_write(path, redact(_AS_JSON.dump_json(self).decode()))

    def knows(self, path: Path) -> bool:
        """Whether a file was there."""
        return str(path) in self.pictures

    def frames(self, video: ImageRef) -> tuple[ImageRef, ...]:
        """The frames of a video that were shown; none for one that was not there."""
        found = self.pictures.get(str(video.path))
        return tuple(replace(video, at=Fraction(at)) for at in found.frames) if found is not None else ()

    def recalled(self, images: Sequence[ImageRef]) -> tuple[ImageRef, ...] | None:
        """The pictures of a row as they were; None where one of them was not there."""
        found = [self.pictures.get(str(image.path)) for image in images]
        if None in found:
            return None
        return tuple(replace(image, planned=one) for image, one in zip(images, found, strict=True))

    def originals(self, images: Iterable[ImageRef]) -> dict[ImageRef, ImageRef]:
        """Each picture with the first one that had the same bytes, as ``qlmm.data.media.copies.originals``."""
        first: dict[str, ImageRef] = {}
        whole = {image: replace(image, at=None) for image in images}
        keys = {file: _key(file) for file in whole.values()}
        groups = {file: self._groups.get(key, key) for file, key in keys.items()}
        return {image: first.setdefault(groups[file], file) for image, file in whole.items()}

    @cached_property
    def _groups(self) -> dict[str, str]:
        return {name: names[0] for names in self.copies for name in names}


def _key(file: ImageRef) -> str:
    if file.path is not None:
        return str(file.path)
    return f"sha256:{hashlib.sha256(file.data or b'').hexdigest()}"


_AS_JSON = TypeAdapter(Remembered)
NOTHING = Remembered()
