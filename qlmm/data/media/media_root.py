"""Pictures and videos as rows name them: untrusted paths, which may only name files under one root.

A path is refused by its name and the links on the way, before any file is opened.

Usage: ``ImageRoot("photos").resolve("2024/cat.jpg")``
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from qlmm.core.secrets import shortened
from qlmm.data.contract import absent, unpacked
from qlmm.data.errors import BadRow
from qlmm.data.media.images import BadImage, frames, thinned
from qlmm.data.media.remembered import NOTHING, Remembered
from qlmm.data.sample import ImageRef

__all__ = ["ImageRoot"]

LONGEST_NAME = 4096
LONGEST_SHOWN = 80
ONLY_RELATIVE = "name pictures relative to the picture folder (`image_root`), with forward slashes"
NO_NETWORK = "qlmm fetches no pictures while reading data: download them and name local files"
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|(?:data|file|https?):", re.IGNORECASE)
INLINE = re.compile(r"data:image/[^,]{1,80};base64,")
# Base64 that begins as the files of JPEG, PNG, GIF, WEBP and TIFF do: longer than a name, and no dot in it.
RAW = re.compile(r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK)[A-Za-z0-9+/\s]{48,}[=\s]*")
# Modes that PNG can store as they are; TIFF stores the others.
IN_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
# Pillow 12 cannot read back the YCbCr that it writes into TIFF. Reading ends in RGB anyway.
IN_NEITHER = {"HSV": "RGB", "RGBa": "RGBA", "La": "LA", "YCbCr": "RGB"}


class ImageRoot:
    """The folder that names of pictures and videos are relative to and may not leave.

    Of a run that goes on, ``remembered`` has the frames of videos that cannot be read any more.
    """

    def __init__(self, folder: str | Path, *, max_frames: int = 8, remembered: Remembered = NOTHING) -> None:
        self.folder = Path(folder)
        self.max_frames = max_frames
        self.remembered = remembered
        self._real = os.path.realpath(self.folder)

    def resolve(self, name: str) -> Path:
        """The real path of a picture, which need not exist; BadRow for a name that is refused, or leads out."""
        if (refused := _refusal(name)) is not None:
            reason, help = refused
            raise BadRow(f"picture path {_quoted(name)} {reason}", help)
        try:
            real = os.path.realpath(os.path.join(self._real, name))
        except (OSError, ValueError) as error:
            raise BadRow(f"picture path {_quoted(name)} cannot be a file name: {error}", ONLY_RELATIVE) from None
        if not real.startswith(os.path.join(self._real, "")):
            how = (
                f"is absolute and not in {self.folder}"
                if name.startswith("/")
                else f"leads out of {self.folder} through a link"
            )
            raise BadRow(f"picture path {_quoted(name)} {how}", ONLY_RELATIVE)
        return Path(real)

    def _spelled(self, name: str) -> Path:
        """The picture of a name, also where accents are one letter in the name and two in the file's, or vice versa."""
        path = self.resolve(name)
        if name.isascii() or os.path.exists(path):
            return path
        others = [self.resolve(unicodedata.normalize(form, name)) for form in ("NFC", "NFD")]
        there = [*filter(os.path.exists, others), *filter(self.remembered.knows, others)]
        return there[0] if there else path

    def refs(self, value: object) -> list[ImageRef]:
        """The pictures of a column that may have none, one, or a list; each of the list may be absent."""
        return [self.ref(one) for one in _listed(value)]

    def ref(self, value: object) -> ImageRef:
        """A picture from a name, base64, encoded bytes, ``{bytes, path}`` or a Pillow image; else BadRow."""
        if isinstance(value, ImageRef):
            return value
        if isinstance(value, str):
            inline = INLINE.match(value)
            return _inline(value) if inline or RAW.fullmatch(value) else ImageRef(path=self._spelled(value))
        if isinstance(value, Mapping):
            path, encoded = value.get("path"), value.get("bytes")
            if not absent(encoded):
                return _encoded_bytes(encoded)
            if isinstance(path, str):
                return self.ref(path)
        encoded = bytes(value) if isinstance(value, (bytes, bytearray)) else _encoded(value)
        if encoded is None:
            raise BadRow(f"a picture must be a file name, bytes or a Pillow image, not {type(value).__name__}")
        return ImageRef(data=encoded)

    def video(self, value: object) -> tuple[ImageRef, ...]:
        """A video as the pictures it is shown as, from a list of pictures or from a video file, which needs PyAV."""
        if isinstance(value, (list, tuple)):
            if not value:
                raise BadRow("a video without frames")
            return tuple(self.ref(one) for one in thinned(value, self.max_frames))
        ref = self.ref(value)
        if ref.path is not None and not ref.path.is_file():
            # Reported together with missing pictures, once the row is whole.
            return self.remembered.frames(ref) or (ref,)
        try:
            return frames(ref, self.max_frames)
        except BadImage as bad:
            if shown := self.remembered.frames(ref):
                return shown
            raise BadRow(f"video {ref.name}: {bad.reason}", "replace or remove the video") from None

    def videos(self, value: object) -> list[tuple[ImageRef, ...]]:
        """The videos of a column that may have none (null or empty text), one, or a list."""
        return [self.video(one) for one in _listed(value)]


def _listed(value: object) -> Sequence[object]:
    """The pictures that a column names, as a list that may be written as text, without those that are absent."""
    value = unpacked(value)
    return [one for one in (value if isinstance(value, (list, tuple)) else [value]) if not _nothing(one)]


def _nothing(value: object) -> bool:
    return absent(value) or (isinstance(value, Mapping) and all(absent(value.get(key)) for key in ("bytes", "path")))


def _encoded_bytes(value: object) -> ImageRef:
    """A picture from what stands in its ``bytes``: bytes, base64, or one number per byte."""
    if isinstance(value, (bytes, bytearray)):
        return ImageRef(data=bytes(value))
    if isinstance(value, str):
        return _inline(value)
    if isinstance(value, (list, tuple)) and all(type(one) is int and 0 <= one < 256 for one in value):
        return ImageRef(data=bytes(value))
    raise BadRow(f"the `bytes` of a picture are {type(value).__name__}, neither bytes nor base64")


def _refusal(name: str) -> tuple[str, str] | None:
    """Why a name is refused by its spelling alone, and the help; None for one that may be followed."""
    rules = {
        "is empty": not name.strip(),
        "is too long": len(name) > LONGEST_NAME,
        "has a drive letter": bool(re.match(r"[A-Za-z]:", name)),
        "contains a NUL": "\0" in name,
        "contains a backslash": "\\" in name,
        "begins with ~": name.startswith("~"),
        "contains `..`": ".." in name.split("/"),
    }
    if URL.match(name) and len(name) <= LONGEST_NAME:
        return "is a URL", NO_NETWORK
    return next(((reason, ONLY_RELATIVE) for reason, broken in rules.items() if broken), None)


def _quoted(name: str) -> str:
    return f"`{shortened(name, LONGEST_SHOWN)}`"


def _inline(text: str) -> ImageRef:
    """A picture in base64, in one line or several, with or without what a data URL has before it."""
    text = "".join(INLINE.sub("", text, count=1).split())
    try:
        return ImageRef(data=base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
    except (binascii.Error, ValueError) as error:
        raise BadRow(f"inline picture is not base64: {error}") from None


def _encoded(value: object) -> bytes | None:
    """A Pillow image as a lossless file, orientation kept; None for anything else."""
    from PIL import Image

    if not isinstance(value, Image.Image):
        return None
    exif = value.getexif()
    plain = value.convert(IN_NEITHER[value.mode]) if value.mode in IN_NEITHER else value
    stream = io.BytesIO()
    plain.save(stream, format="PNG" if plain.mode in IN_PNG else "TIFF", exif=exif)
    return stream.getvalue()
