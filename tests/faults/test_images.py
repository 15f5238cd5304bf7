"""Pictures of every kind, whole and broken: a defined result or a ``BadImage``, never anything else."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from qlmm.data.media import images
from qlmm.data.media.images import BadImage, decode, size
from qlmm.data.sample import ImageRef

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
LOSSLESS = ("PNG", "TIFF")
WHITE, GREY = (255, 255, 255), (128, 128, 128)


def encoded(image: Image.Image, format: str = "PNG", **settings: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=format, **settings)
    return stream.getvalue()


def drawn(width: int = 24, height: int = 16) -> Image.Image:
    """A picture without symmetry, so that every orientation differs."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width, dtype=np.uint8)
    pixels[..., 1] = np.linspace(0, 200, height, dtype=np.uint8)[:, None]
    pixels[: height // 2, : width // 2, 2] = 255
    return Image.fromarray(pixels)


WHOLE = {format: encoded(drawn(), format) for format in FORMATS}


def outcome(data: bytes) -> str:
    """``picture`` or ``bad``; everything else escapes and fails the test."""
    try:
        picture = decode(ImageRef(data=data))
    except BadImage:
        return "bad"
    assert picture.mode == "RGB"
    return "picture"


@pytest.mark.parametrize("format", FORMATS)
def test_content_decides_the_format_whatever_the_name(format: str, tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.txt", "a"):
        (tmp_path / name).write_bytes(WHOLE[format])
        assert decode(ImageRef(path=tmp_path / name)).size == (24, 16)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("percent", range(0, 100, 5))
def test_a_cut_file_is_an_error_and_never_a_grey_picture(format: str, percent: int) -> None:
    cut = WHOLE[format][: len(WHOLE[format]) * percent // 100]
    # Some formats end with bytes no pixel needs; then the whole picture must come out.
    if outcome(cut) == "picture":
        assert decode(ImageRef(data=cut)).tobytes() == decode(ImageRef(data=WHOLE[format])).tobytes()


def test_a_cut_file_stays_an_error_when_another_library_allows_cut_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(BadImage):
        decode(ImageRef(data=WHOLE["JPEG"][:-100]))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_flipped_bits_end_in_a_picture_or_a_bad_image(format: str, data: st.DataObject) -> None:
    broken = bytearray(WHOLE[format])
    for place in data.draw(st.lists(st.integers(0, len(broken) * 8 - 1), min_size=1, max_size=8)):
        broken[place // 8] ^= 1 << place % 8
    outcome(bytes(broken))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!doctype html><title>404</title>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.4",
        b"8BPS\x00\x01",
        b"SIMPLE  =                    T",
        b"\x00" * 1000,
    ],
    ids=["empty", "html", "svg", "pdf", "psd", "fits", "zeros"],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        decode(ImageRef(data=data))


def test_postscript_is_never_run() -> None:
    with pytest.raises(BadImage, match="formats JPEG, PNG"):
        decode(ImageRef(data=encoded(drawn(), "EPS")))


def test_missing_files_and_devices_are_refused_without_reading(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="no such file"):
        decode(ImageRef(path=tmp_path / "none.png"))
    with pytest.raises(BadImage, match="not a regular file"):
        decode(ImageRef(path=Path("/dev/zero")))
    with pytest.raises(BadImage, match="not a regular file"):
        decode(ImageRef(path=tmp_path))


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    facts = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", facts) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [7_100, 14_000, 60_000])
def test_the_pixel_limit_is_checked_in_the_header(side: int) -> None:
    data = png_header(side, side)
    assert len(data) < 100
    for check in (decode, size):
        with pytest.raises(BadImage, match="pixels"):
            check(ImageRef(data=data))


def test_limits_are_limits_of_pixels_and_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    ref = ImageRef(data=WHOLE["PNG"])
    monkeypatch.setattr(images, "MAX_PIXELS", 384)
    assert decode(ref).size == (24, 16)
    monkeypatch.setattr(images, "MAX_PIXELS", 383)
    with pytest.raises(BadImage, match="383 pixels allowed"):
        decode(ref)
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    with pytest.raises(BadImage, match="bytes, more than"):
        decode(ref)


def test_a_text_bomb_in_a_png_is_refused() -> None:
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    notes.add_text("bomb", "x" * 50_000_000, zip=True)
    with pytest.raises(BadImage):
        decode(ImageRef(data=encoded(drawn(), pnginfo=notes)))


@pytest.mark.parametrize(("width", "height", "fits"), [(1, 1, True), (1, 200, True), (400, 20, True), (1, 5000, False)])
def test_elongated_pictures_have_a_rule(width: int, height: int, fits: bool) -> None:
    data = encoded(Image.new("RGB", (width, height)))
    assert (outcome(data) == "picture") is fits


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_gives_the_same_upright_picture(format: str, orientation: int) -> None:
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = drawn()
    stored = upright.transpose(back[orientation]) if orientation in back else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    quality = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    ref = ImageRef(data=encoded(stored, format, exif=exif, **quality))
    picture = decode(ref)
    assert size(ref) == picture.size == upright.size
    difference = np.abs(np.asarray(picture).astype(int) - np.asarray(upright).astype(int))
    assert difference.max() <= (8 if format == "JPEG" else 0)


def test_damaged_exif_leaves_the_picture_as_stored() -> None:
    data = encoded(drawn(), exif=b"Exif\x00\x00garbage")
    assert decode(ImageRef(data=data)).tobytes() == drawn().tobytes()


def sixteen_bit(*values: int) -> Image.Image:
    return Image.fromarray(np.array([values], np.uint16))


def grey_float(*values: float) -> Image.Image:
    return Image.fromarray(np.array([values], np.float32))


def palette(**settings: object) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    return encoded(image, "PNG", **settings)


GOLDEN = {
    "1": (encoded(Image.new("1", (1, 1), 1)), [WHITE]),
    "L": (encoded(Image.new("L", (1, 1), 128)), [GREY]),
    "L+tRNS": (encoded(Image.new("L", (1, 1), 7), transparency=7), [WHITE]),
    "RGB+tRNS": (encoded(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)), [WHITE]),
    "LA": (encoded(Image.new("LA", (1, 1), (0, 0))), [WHITE]),
    "P": (palette(), [(255, 0, 0), (0, 0, 255)]),
    "P+tRNS": (palette(transparency=0), [WHITE, (0, 0, 255)]),
    "RGBA": (encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 128))), [(255, 127, 127)]),
    "RGBA hidden colour": (encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 0))), [WHITE]),
    "CMYK": (encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [(255, 0, 0)]),
    "LAB": (encoded(Image.new("LAB", (1, 1), (255, 128, 128)), "TIFF"), [WHITE]),
    "I;16": (encoded(sixteen_bit(0, 257, 32896, 65535)), [(0,) * 3, (1,) * 3, GREY, WHITE]),
    "I 16-bit range": (encoded(Image.new("I", (1, 1), 65535), "TIFF"), [WHITE]),
    "I beyond": (encoded(Image.fromarray(np.array([[0, 1_000_000]], np.int32)), "TIFF"), [(0,) * 3, WHITE]),
    "F 0..1": (encoded(grey_float(0.0, 0.5, 1.0), "TIFF"), [(0,) * 3, GREY, WHITE]),
    "F beyond": (encoded(grey_float(-4.0, 4.0), "TIFF"), [(0,) * 3, WHITE]),
}


@pytest.mark.parametrize("mode", GOLDEN)
def test_every_mode_has_a_defined_colour(mode: str) -> None:
    data, colours = GOLDEN[mode]
    pixels = np.asarray(decode(ImageRef(data=data)))[0]
    assert np.abs(pixels.astype(int) - np.array(colours)).max() <= 1


def test_cmyk_and_ycck_jpeg_look_like_what_was_stored() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    red = np.asarray(decode(ImageRef(data=data))).astype(int)[8, 8]
    assert np.abs(red - [255, 0, 0]).max() <= 4


def test_non_finite_floats_are_refused() -> None:
    with pytest.raises(BadImage, match="not finite"):
        decode(ImageRef(data=encoded(grey_float(0.0, float("nan")), "TIFF")))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken(format: str) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    lossless = {"lossless": True} if format == "WEBP" else {}
    data = encoded(first, format, save_all=True, append_images=[second], **lossless)
    assert decode(ImageRef(data=data)).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("format", FORMATS)
def test_size_equals_decode_without_decoding(format: str) -> None:
    ref = ImageRef(data=WHOLE[format])
    assert size(ref) == decode(ref).size


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP"])
def test_size_reads_no_further_than_the_header(format: str) -> None:
    assert size(ImageRef(data=WHOLE[format][:-40])) == (24, 16)
