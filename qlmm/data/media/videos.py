"""Video files as still frames: which frames there are, and any one of them, without decoding the rest.

A file's first bytes name its container, which the decoder is given. So playlists, which can name other files and
addresses, are never recognised.

A file's own headers tell whether it is whole. FFmpeg reads on past a cut and marks no packet as corrupt: of half a GIF
it gives 17 of 40 frames, of 90 % of a WebM 39 (PyAV 18).

Usage: ``with path.open("rb") as stream: picture = frame(stream, times(stream)[0])``
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import IO, TYPE_CHECKING, Any

from qlmm.core.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["BadVideo", "frame", "size", "times"]

CUT = "the file is cut off"


class BadVideo(ValueError):
    """A video that cannot be shown; the message is one sentence without a full stop, without the video's name."""


def times(stream: IO[bytes]) -> list[Fraction]:
    """When each frame is shown, in seconds and in order; reads the whole file and decodes nothing."""
    found = set()
    with _opened(stream) as (container, video):
        for packet in container.demux(video):
            if packet.is_corrupt:
                raise BadVideo(CUT)
            # Frames before the start of a cut that an editor made are stored and never shown.
            if packet.pts is not None and not packet.is_discard:
                found.add(packet.pts * video.time_base)
    if not found:
        raise BadVideo("no frame in it")
    return sorted(found)


def size(stream: IO[bytes], *, max_pixels: int) -> tuple[int, int]:
    """Width and height of every frame, upright, in pixels; decodes the first once the header is within the limit."""
    with _opened(stream) as (container, video):
        width, height = _stored_size(video)
        if width * height > max_pixels:
            raise BadVideo(f"{width} × {height} is more than the {max_pixels:,} pixels allowed")
        first = next(container.decode(video), None)
        if first is None:
            raise BadVideo("no frame in it")
        return (height, width) if first.rotation % 180 == 90 else (width, height)


def frame(stream: IO[bytes], at: Fraction) -> Image.Image:
    """The frame shown at a time of ``times``, as RGB, upright; decodes from the key frame before it."""
    with _opened(stream) as (container, video):
        width, height = _stored_size(video)
        wanted = int(at / video.time_base)
        # Some containers have no usable index and land behind the frame; then from the beginning.
        shown = _shown_at(container, video, wanted, wanted) or _shown_at(container, video, 0, wanted)
        if shown is None:
            raise BadVideo(f"no frame at {float(at):.2f} s")
        # A stream may change its size on the way.
        picture: Image.Image = shown.to_image(width=width, height=height)
        return picture.rotate(shown.rotation, expand=True) if shown.rotation % 90 == 0 else picture


def _shown_at(container: Any, video: Any, start: int, wanted: int) -> Any:
    """The last frame that begins no later than `wanted`, found from the key frame before `start`; None behind it."""
    container.seek(start, stream=video)
    last = None
    for one in container.decode(video):
        if one.pts is None:
            continue
        if one.pts <= wanted:
            last = one
        if one.pts >= wanted:
            break
    return last


def _stored_size(video: Any) -> tuple[int, int]:
    width, height = video.codec_context.width, video.codec_context.height
    if not width or not height:
        raise BadVideo("no frame in it")
    return width, height


@contextmanager
def _opened(stream: IO[bytes]) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream; turns what PyAV raises, here or in use, into ``BadVideo``."""
    try:
        import av
    except ImportError:
        message = "this row shows a video file, and PyAV, which decodes them, is not installed"
        raise DataError.one("D009", message, help='pip install "qlmm[video]"') from None
    container = _container(stream)
    stream.seek(0)
    try:
        with av.open(stream, format=container) as opened:
            video = opened.streams.best("video")
            if video is None:
                raise BadVideo("no picture stream in it")
            yield opened, video
    except (av.FFmpegError, EOFError) as error:
        raise BadVideo(f"cannot be decoded: {error.args[1] if len(error.args) > 1 else error}") from None


def _container(stream: IO[bytes]) -> str:
    """FFmpeg's name for the container, once the file is known to reach as far as its own headers tell."""
    stream.seek(0)
    start = stream.read(16)
    length = stream.seek(0, io.SEEK_END)
    for name, magic, offset, whole in CONTAINERS:
        if start.startswith(magic, offset):
            if not whole(stream, length):
                raise BadVideo(CUT)
            return name
    raise BadVideo("not a video in one of the formats MP4, MOV, WEBM, MKV, AVI, GIF")


def _whole_boxes(stream: IO[bytes], length: int) -> bool:
    """ISO 14496-12: a chain of boxes, each with its size first; 1 means a longer number follows, 0 to the end."""
    place = 0
    while place < length:
        stream.seek(place)
        head = stream.read(16)
        box = int.from_bytes(head[:4])
        if box == 0:
            return True
        place += max(8, int.from_bytes(head[8:16]) if box == 1 else box)
    return place == length


def _whole_segment(stream: IO[bytes], length: int) -> bool:
    """RFC 8794: an EBML header, then one segment; all ones where its size was not known when writing began."""
    place = 0
    for identifier in (4, 4):
        stream.seek(place + identifier)
        head = stream.read(8)
        width = 9 - head[0].bit_length() if head and head[0] else 8
        value = int.from_bytes(head[:width]) & ((1 << 7 * width) - 1)
        if value == (1 << 7 * width) - 1:
            return True
        place += identifier + width + value
    return place <= length


def _whole_riff(stream: IO[bytes], length: int) -> bool:
    stream.seek(4)
    return 8 + int.from_bytes(stream.read(4), "little") <= length


def _whole_gif(stream: IO[bytes], length: int) -> bool:
    stream.seek(max(0, length - 1))
    return stream.read(1) == b";"


# FFmpeg's name, how files begin and where, and whether a file is all there.
CONTAINERS = (
    ("mov", (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"), 4, _whole_boxes),
    ("matroska", (b"\x1aE\xdf\xa3",), 0, _whole_segment),
    ("avi", (b"AVI ",), 8, _whole_riff),
    ("gif", (b"GIF87a", b"GIF89a"), 0, _whole_gif),
)
