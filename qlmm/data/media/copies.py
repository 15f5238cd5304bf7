"""Which pictures are one and the same, by their bytes: a copy under another name is not a new picture.

Usage: ``first = originals(images); first[a] == first[b]``
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace

from qlmm.data.sample import ImageRef

__all__ = ["originals"]

TAIL = 4096


def originals(images: Iterable[ImageRef]) -> dict[ImageRef, ImageRef]:
    """Each picture with the first one of the same bytes; frames of a video are one picture.

    Pictures that differ in size or in their last bytes are not read further. A copy that was encoded again is another
    picture.
    """
    whole = {image: replace(image, at=None) for image in images}
    alike: list[Sequence[ImageRef]] = [list(dict.fromkeys(whole.values()))]
    for key in (_bytes, _tail, _sha256):
        alike = [some for pictures in alike for some in _parted(pictures, key)]
    first = {copy: pictures[0] for pictures in alike for copy in pictures}
    return {image: first.get(file, file) for image, file in whole.items()}


def _parted(pictures: Sequence[ImageRef], key: Callable[[ImageRef], Hashable]) -> Iterator[Sequence[ImageRef]]:
    """Those of the pictures that share a key with another one."""
    found: dict[Hashable, list[ImageRef]] = {}
    for picture in pictures:
        found.setdefault(key(picture), []).append(picture)
    return (some for some in found.values() if len(some) > 1)


def _bytes(picture: ImageRef) -> Hashable:
    if picture.path is None:
        return len(picture.data or b"")
    # What cannot be read is like nothing else.
    return os.path.getsize(picture.path) if picture.path.is_file() else picture


def _tail(picture: ImageRef) -> Hashable:
    with _opened(picture) as stream:
        stream.seek(max(0, stream.seek(0, io.SEEK_END) - TAIL))
        return stream.read()


def _sha256(picture: ImageRef) -> Hashable:
    with _opened(picture) as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _opened(picture: ImageRef) -> io.BufferedIOBase:
    return picture.path.open("rb") if picture.path is not None else io.BytesIO(picture.data or b"")
