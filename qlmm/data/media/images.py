"""Encoded pictures -> RGB by fixed rules: limits before decoding, content decides the format, damage is an error.

- EXIF (or XMP) orientation 1-8: applied, once. Animations and pages: the first.
- grey, palette, black and white, YCbCr, LAB, CMYK: Pillow's conversion, profiles not consulted.
- alpha, and the transparent colour of palettes, greys and RGB: laid over white.
- 16-bit grey: 65535 becomes 255. 32-bit integers: as 16-bit where they fit, else lowest..highest becomes 0..255.
- float: 0..1 becomes 0..255 where it fits, else lowest..highest; non-finite values are an error.
- longer than 200 times its width, or the other way round: an error, because square-resizing processors would explode.

A frame of a video is a picture like any other from here on.

Usage: ``decode(ImageRef(path=Path("cat.jpg")))``
"""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import IO, TYPE_CHECKING, TypeVar

from qlmm.core.errors import DataError, Problem, Where
from qlmm.data.media import videos
from qlmm.data.sample import ImageRef

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_BYTES", "MAX_PIXELS", "BadImage", "check", "decode", "frames", "size", "thinned"]

MAX_BYTES = 64 * 1024 * 1024
MAX_VIDEO_BYTES = 4 * 1024 * 1024 * 1024
# Of a picture by its header: a guard against hostile files. The recipe decides how many a model is shown.
MAX_PIXELS = 50_000_000
MOST_ELONGATED = 200
# By content, not by name. Never EPS (runs a program), PSD, FITS or PDF.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
ORIENTATION = 0x0112
# What undoes the EXIF orientations 2 to 8: names of `PIL.Image.Transpose`.
TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
# How a whole file of a format ends; a file that ends otherwise may still be whole, so it is decoded to find out.
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}
# Everything Pillow's decoders were seen to raise on hostile bytes.
PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    MemoryError,
    BufferError,
    struct.error,
    zlib.error,
)

Item = TypeVar("Item")


class BadImage(DataError):
    """A picture or video that cannot be shown; ``message`` is ``reason`` with its name before it."""

    def __init__(self, ref: ImageRef, reason: str) -> None:
        where = Where(str(ref.path)) if ref.path is not None else None
        self.message = f"picture {ref.name}: {reason}"
        super().__init__([Problem("D020", self.message, where)])
        self.ref = ref
        self.reason = reason


def decode(ref: ImageRef) -> Image.Image:
    """The picture as 8-bit RGB, upright; BadImage for one that breaks a rule above."""
    from PIL.Image import Transpose

    if ref.at is not None:
        size(ref)
        with _video(ref) as stream:
            return videos.frame(stream, ref.at)
    with _opened(ref) as image:
        orientation = _orientation(image)
        image.seek(0)
        image.load()
        shown = _rgb(image)
        return shown if orientation == 1 else shown.transpose(Transpose[TURNS[orientation - 2]])


def size(ref: ImageRef) -> tuple[int, int]:
    """Width and height in pixels as ``decode`` would give them, from the header alone, or a video's first frame."""
    if ref.planned is not None:
        return ref.planned.width, ref.planned.height
    if ref.at is not None:
        return _frame_size(replace(ref, at=None))
    with _opened(ref) as image:
        return _upright(image)


def check(ref: ImageRef) -> tuple[int, int]:
    """As ``size``; BadImage for a header or an end that is not right.

    That finds cut files at the cost of reading two places of them.
    """
    if ref.at is not None:
        return size(ref)
    with _opened(ref) as image:
        end, found = ENDS.get(image.format or ""), _upright(image)
    if end is None or not _ends_with(ref, end):
        decode(ref)
    return found


def thinned(items: Sequence[Item], most: int) -> tuple[Item, ...]:
    """At most so many of the items, evenly spaced: the middle one of each of `most` equal stretches."""
    if len(items) <= most:
        return tuple(items)
    return tuple(items[(2 * stretch + 1) * len(items) // (2 * most)] for stretch in range(most))


@cache
def frames(ref: ImageRef, most: int) -> tuple[ImageRef, ...]:
    """A video as pictures: at most so many of its frames, evenly spaced; decodes the first, to see that it can be."""
    with _video(ref) as stream:
        shown = thinned(videos.times(stream), most)
    _frame_size(ref)
    return tuple(replace(ref, at=at) for at in shown)


@cache
def _frame_size(video: ImageRef) -> tuple[int, int]:
    """Cached: every frame of a video is asked for its size, and all have the same."""
    with _video(video) as stream:
        found = videos.size(stream, max_pixels=MAX_PIXELS)
    _check_size(video, found)
    return found


@contextmanager
def _video(ref: ImageRef) -> Iterator[IO[bytes]]:
    """The bytes of a video; turns what its decoder raises into ``BadImage``."""
    try:
        with _stream(ref, MAX_VIDEO_BYTES) as stream:
            yield stream
    except PILLOW_ERRORS as error:
        raise BadImage(ref, str(error) or type(error).__name__) from None


def _upright(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _ends_with(ref: ImageRef, end: bytes) -> bool:
    with _stream(ref, MAX_BYTES) as stream:
        stream.seek(-len(end), io.SEEK_END)
        return stream.read() == end


@contextmanager
def _opened(ref: ImageRef) -> Iterator[Image.Image]:
    """The picture, its header within the limits; turns what Pillow raises, here or in use, into ``BadImage``."""
    from PIL import Image, ImageFile, UnidentifiedImageError

    cut_allowed = ImageFile.LOAD_TRUNCATED_IMAGES
    # Another library may have switched this on; a half-grey picture must stay an error here.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with _stream(ref, MAX_BYTES) as stream, warnings.catch_warnings():
            # Pillow's size warning is replaced by our own limit; damaged metadata does not make pixels wrong.
            warnings.simplefilter("ignore")
            with Image.open(stream, formats=FORMATS) as image:
                _check_size(ref, image.size)
                yield image
    except Image.DecompressionBombError:
        raise BadImage(ref, "more than 178 million pixels, which are never decoded") from None
    except UnidentifiedImageError:
        raise BadImage(ref, f"not a picture in one of the formats {', '.join(FORMATS)}") from None
    except PILLOW_ERRORS as error:
        raise BadImage(ref, f"cannot be decoded: {str(error) or type(error).__name__}") from None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = cut_allowed


@contextmanager
def _stream(ref: ImageRef, max_bytes: int) -> Iterator[IO[bytes]]:
    """The encoded bytes, once they are known to be a regular file of allowed size."""
    if ref.path is None:
        _check_bytes(ref, len(ref.data or b""), max_bytes)
        yield io.BytesIO(ref.data or b"")
        return
    try:
        facts = ref.path.stat()
    except FileNotFoundError:
        raise BadImage(ref, "no such file") from None
    if not stat.S_ISREG(facts.st_mode):
        raise BadImage(ref, "not a regular file")
    _check_bytes(ref, facts.st_size, max_bytes)
    with ref.path.open("rb") as stream:
        yield stream


def _check_bytes(ref: ImageRef, found: int, allowed: int) -> None:
    if found == 0:
        raise BadImage(ref, "the file is empty" if ref.path is not None else "it is empty")
    if found > allowed:
        raise BadImage(ref, f"{found:,} bytes, more than the {allowed:,} allowed")


def _check_size(ref: ImageRef, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise BadImage(ref, f"{width} × {height} is more than the {MAX_PIXELS:,} pixels allowed")
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise BadImage(ref, f"{width} × {height}: one side is more than {MOST_ELONGATED} times the other")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none or it is damaged, and for TIFF, which Pillow turns itself.

    PNG's own ``getexif`` would decode the picture; the plain one reads the header.
    """
    from PIL import Image

    if image.format == "TIFF":
        return 1
    try:
        value = Image.Image.getexif(image).get(ORIENTATION, 1)
    except PILLOW_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow as RGB, see the rules at the top."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        return _scaled(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        alpha = image.convert("RGBA")
        white = Image.new("RGBA", alpha.size, "white")
        return Image.alpha_composite(white, alpha).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float greys as 8-bit grey."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    lowest, highest = float(values.min()), float(values.max())
    full = 1.0 if image.mode == "F" else 65535.0
    if lowest < 0.0 or highest > full:
        values, full = values - lowest, max(highest - lowest, 1e-12)
    return Image.fromarray(np.rint(values * (255.0 / full)).astype(np.uint8))
