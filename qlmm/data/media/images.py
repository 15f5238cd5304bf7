"""Encoded pictures -> RGB by fixed rules: limits before decoding, content decides the format, damage is an error.

What every kind of picture becomes:

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
# Of a picture as its header has it: a guard against hostile files. How many a model is shown is the recipe's to say.
MAX_PIXELS = 50_000_000
MOST_ELONGATED = 200
# By content, whatever the name says. Never EPS (runs a program), PSD, FITS or PDF.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
ORIENTATION = 0x0112
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
    """A picture that cannot be shown to a model; nothing else escapes this module.

    Attributes:
        ref: the picture.
        reason: one sentence without a full stop, without the picture's name.
        message: the same with the picture's name.
    """

    def __init__(self, ref: ImageRef, reason: str) -> None:
        where = Where(str(ref.path)) if ref.path is not None else None
        self.message = f"picture {ref.name}: {reason}"
        super().__init__([Problem("D020", self.message, where)])
        self.ref = ref
        self.reason = reason


def decode(ref: ImageRef, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """The picture as 8-bit RGB, upright.

    Args:
        ref: a file or encoded bytes.
        max_pixels: width × height allowed; checked in the header, before any pixel is decoded.
        max_bytes: encoded size allowed.

    Raises:
        BadImage: when it is missing, too large, cut off, damaged, of another format, or absurdly elongated.
    """
    if ref.at is not None:
        _check_size(ref, _frame_size(replace(ref, at=None)), max_pixels)
        with _video(ref) as stream:
            return videos.frame(stream, ref.at)
    with _opened(ref, max_bytes) as image:
        _check_size(ref, image.size, max_pixels)
        turn = _orientation(image)
        image.seek(0)
        image.load()
        return _upright(_rgb(image), turn)


def size(ref: ImageRef, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> tuple[int, int]:
    """Width and height in pixels as ``decode`` would give them, from the header alone, or a video's first frame.

    Raises:
        BadImage: when the header is not readable or promises more than the limits allow.
    """
    if ref.at is not None:
        found = _frame_size(replace(ref, at=None))
        _check_size(ref, found, max_pixels)
        return found
    with _opened(ref, max_bytes) as image:
        _check_size(ref, image.size, max_pixels)
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def check(ref: ImageRef, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> None:
    """Header and end of a picture, which finds cut files at the cost of reading two places of them.

    Raises:
        BadImage: when the header is not readable or promises too much, or the file is cut off.
    """
    if ref.at is not None:
        size(ref, max_pixels=max_pixels)
        return
    with _opened(ref, max_bytes) as image:
        _check_size(ref, image.size, max_pixels)
        end = ENDS.get(image.format or "")
    if end is None or not _ends_with(ref, end):
        decode(ref, max_pixels=max_pixels, max_bytes=max_bytes)


def thinned(items: Sequence[Item], most: int) -> tuple[Item, ...]:
    """At most so many of the items, evenly spaced: the middle one of each of `most` equal stretches."""
    if len(items) <= most:
        return tuple(items)
    return tuple(items[(2 * stretch + 1) * len(items) // (2 * most)] for stretch in range(most))


@cache
def frames(ref: ImageRef, most: int) -> tuple[ImageRef, ...]:
    """A video as pictures: at most so many of its frames, evenly spaced; decodes the first, to see that it can be.

    Raises:
        BadImage: when it is missing, too large, cut off, damaged, of another format, or holds no frame.
        DataError: D009 when PyAV is not installed.
    """
    with _video(ref) as stream:
        shown = thinned(videos.times(stream), most)
    _check_size(ref, _frame_size(ref), MAX_PIXELS)
    return tuple(replace(ref, at=at) for at in shown)


@cache
def _frame_size(video: ImageRef) -> tuple[int, int]:
    """Kept, because every frame of a video is asked for its size, and all have the same."""
    with _video(video) as stream:
        return videos.size(stream, max_pixels=MAX_PIXELS)


@contextmanager
def _video(ref: ImageRef) -> Iterator[IO[bytes]]:
    """The bytes of a video; turns whatever its decoder raises into ``BadImage``."""
    try:
        with _stream(ref, MAX_VIDEO_BYTES) as stream:
            yield stream
    except PILLOW_ERRORS as error:
        raise BadImage(ref, str(error) or type(error).__name__) from None


def _ends_with(ref: ImageRef, end: bytes) -> bool:
    if ref.path is None:
        return (ref.data or b"").endswith(end)
    with ref.path.open("rb") as stream:
        stream.seek(-len(end), io.SEEK_END)
        return stream.read() == end


@contextmanager
def _opened(ref: ImageRef, max_bytes: int) -> Iterator[Image.Image]:
    """The picture with its header read; turns whatever Pillow raises, here or while it is used, into ``BadImage``."""
    from PIL import Image, ImageFile, UnidentifiedImageError

    cut_allowed = ImageFile.LOAD_TRUNCATED_IMAGES
    # Another library may have switched this on; a half-grey picture must stay an error here.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with _stream(ref, max_bytes) as stream, warnings.catch_warnings():
            # Pillow's size warning is replaced by our own limit; damaged metadata does not make pixels wrong.
            warnings.simplefilter("ignore")
            with Image.open(stream, formats=FORMATS) as image:
                yield image
    except BadImage:
        raise
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


def _check_size(ref: ImageRef, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise BadImage(ref, f"{width} × {height} is more than the {max_pixels:,} pixels allowed")
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise BadImage(ref, f"{width} × {height}: one side is more than {MOST_ELONGATED} times the other")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none or it is damaged.

    TIFF says 1 because Pillow turns TIFF pictures itself. PNG's own ``getexif`` would decode the picture, so the
    plain one is asked, which reads what the header held.
    """
    from PIL import Image

    if image.format == "TIFF":
        return 1
    try:
        value = Image.Image.getexif(image).get(ORIENTATION, 1)
    except PILLOW_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


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
        raise ValueError("holds values that are not finite")
    lowest, highest = float(values.min()), float(values.max())
    full = 1.0 if image.mode == "F" else 65535.0
    if lowest < 0.0 or highest > full:
        values, full = values - lowest, max(highest - lowest, 1e-12)
    return Image.fromarray(np.rint(values * (255.0 / full)).astype(np.uint8))
