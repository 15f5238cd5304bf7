"""Picture names never reach a file outside their root; whatever rows call a picture becomes a reference."""

from __future__ import annotations

import base64
import io
import os
import sys
import threading
import tracemalloc
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from qlmm.data.errors import BadRow
from qlmm.data.media.images import BadImage, decode
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.sample import ImageRef

OPENED: list[str] = []
WATCHING = threading.local()


def _watch(event: str, args: tuple[object, ...]) -> None:
    if event == "open" and getattr(WATCHING, "on", False):
        OPENED.append(os.fsdecode(args[0]) if isinstance(args[0], (str, bytes)) else repr(args[0]))


sys.addaudithook(_watch)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a picture, and a victim beside it that links inside the root point to."""
    folder = tmp_path_factory.mktemp("tree")
    root = folder / "root"
    (root / "in").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(root / "in" / "a.png")
    Image.new("RGB", (2, 2)).save(folder / "secret.png")
    (folder / "root-twin").mkdir()
    Image.new("RGB", (2, 2)).save(folder / "root-twin" / "a.png")
    (root / "out.png").symlink_to(folder / "secret.png")
    (root / "up").symlink_to(folder)
    (root / "loop").symlink_to(root / "loop")
    (root / "again.png").symlink_to(root / "in" / "a.png")
    # Pillow's plugins are modules, and importing them opens files too.
    Image.init()
    return root


LINKS_AND_FILES = ("in", "up", "out.png", "a.png", "secret.png", "loop", "root-twin", "etc", "passwd", "A" * 300)
TRICKS = ("..", ".", "~", "", "C:", "\\", "\0", "%2e%2e", "/", "…", "\udc80", "\ud800", "file:", "http:")
PIECES = st.sampled_from(LINKS_AND_FILES + TRICKS)
NAMES = st.one_of(st.lists(PIECES, max_size=6).map("/".join), st.text(max_size=30))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES)
@example("../secret.png")
@example("up/secret.png")
@example("out.png")
@example("../root-twin/a.png")
@example("/etc/passwd")
def test_nothing_outside_the_root_is_ever_opened(tree: Path, name: str) -> None:
    OPENED.clear()
    WATCHING.on = True
    try:
        decode(ImageRoot(tree).ref(name))
    except (BadRow, BadImage):
        pass
    finally:
        WATCHING.on = False
    inside = os.path.realpath(tree) + os.sep
    assert [path for path in OPENED if not os.path.realpath(path).startswith(inside)] == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "is empty"),
        ("/etc/passwd", "is absolute"),
        ("../a.png", "contains `..`"),
        ("in/../../a.png", "contains `..`"),
        ("~/a.png", "begins with ~"),
        ("C:/a.png", "has a drive letter"),
        ("in\\a.png", "contains a backslash"),
        ("a\0.png", "contains a NUL"),
        ("a" * 5000, "is too long"),
        ("https://example.org/a.png", "is a URL"),
        ("file:///etc/passwd", "is a URL"),
        ("out.png", "leads out"),
        ("up/secret.png", "leads out"),
    ],
)
def test_names_that_leave_the_root_are_refused_with_a_reason(tree: Path, name: str, reason: str) -> None:
    with pytest.raises(BadRow, match=reason) as caught:
        ImageRoot(tree).resolve(name)
    assert caught.value.help


def test_names_inside_the_root_are_taken(tree: Path) -> None:
    root = ImageRoot(tree)
    assert root.resolve("in/a.png") == Path(os.path.realpath(tree / "in" / "a.png"))
    assert root.resolve("./in//a.png") == root.resolve("again.png") == root.resolve("in/a.png")
    assert root.resolve("not there yet.png").name == "not there yet.png"


def test_inline_pictures_are_decoded_not_fetched(tree: Path) -> None:
    whole = (tree / "in" / "a.png").read_bytes()
    inline = "data:image/png;base64," + base64.b64encode(whole).decode()
    assert ImageRoot(tree).ref(inline) == ImageRef(data=whole)
    with pytest.raises(BadRow, match="not base64"):
        ImageRoot(tree).ref("data:image/png;base64,***")
    with pytest.raises(BadRow, match="is a URL"):
        ImageRoot(tree).ref("data:text/html,hello")


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr", "LAB", "HSV", "PA", "La", "RGBa"]
)
def test_pillow_pictures_survive_as_files(tree: Path, mode: str) -> None:
    ref = ImageRoot(tree).ref(Image.new(mode, (3, 5)))
    assert decode(ref).size == (3, 5)


def test_a_ycbcr_picture_has_the_colours_it_had_in_memory(tree: Path) -> None:
    drawn = Image.linear_gradient("L").resize((6, 4)).convert("RGB").convert("YCbCr")
    assert decode(ImageRoot(tree).ref(drawn)).tobytes() == drawn.convert("RGB").tobytes()


def test_a_pillow_picture_keeps_its_orientation(tree: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn = Image.new("RGB", (3, 5))
    drawn.getexif().update(exif)
    assert decode(ImageRoot(tree).ref(drawn)).size == (5, 3)


def test_columns_hold_none_one_or_several(tree: Path) -> None:
    root = ImageRoot(tree)
    assert root.refs(None) == root.refs("") == root.refs([]) == []
    assert len(root.refs("in/a.png")) == 1
    assert len(root.refs(["in/a.png", b"bytes", {"bytes": None, "path": "in/a.png"}])) == 3
    nothing = [None, "", float("nan"), {"bytes": None, "path": None}, {"bytes": "", "path": ""}]
    assert root.refs(nothing) == [ref for one in nothing for ref in root.refs(one)] == []
    assert [ref.name for ref in root.refs('["in/a.png", null]')] == ["a.png"]
    with pytest.raises(BadRow, match="not bool"):
        root.refs([True])


@pytest.mark.parametrize("wrap", [False, True], ids=["one line", "wrapped"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_base64_is_a_picture_with_and_without_what_a_data_url_has(tree: Path, kind: str, wrap: bool) -> None:
    stream = io.BytesIO()
    Image.effect_noise((20, 20), 50).convert("RGB").save(stream, kind)
    text = (base64.encodebytes if wrap else base64.b64encode)(stream.getvalue()).decode()
    for value in (text, text.rstrip("=\n"), f"data:image/x;base64,{text}", {"bytes": text, "path": None}):
        assert ImageRoot(tree).ref(value) == ImageRef(data=stream.getvalue())


@pytest.mark.parametrize("value", [10**12, 1.5, True, [256], [-1], ["a"], {"a": 1}, "***"])
def test_what_is_no_bytes_is_refused_and_nothing_is_allocated(tree: Path, value: object) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadRow, match=r"base64|bytes"):
            ImageRoot(tree).ref({"bytes": value})
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert ImageRoot(tree).ref({"bytes": [137, 80]}) == ImageRef(data=b"\x89P")


def test_absolute_names_are_taken_inside_the_root_only(tree: Path) -> None:
    assert ImageRoot(tree).ref(str(tree / "in" / "a.png")) == ImageRoot(tree).ref("in/a.png")
    for outside in (tree.parent / "secret.png", tree.parent / "root-twin" / "a.png", tree / "out.png", tree / "up/x"):
        with pytest.raises(BadRow, match="is absolute and not in"):
            ImageRoot(tree).ref(str(outside))


def test_a_name_finds_its_file_however_its_accents_are_written(tmp_path: Path) -> None:
    for written, named in (("NFD", "NFC"), ("NFC", "NFD")):
        file = tmp_path / unicodedata.normalize(written, f"é{written}.png")
        file.write_bytes(b"")
        assert ImageRoot(tmp_path).ref(unicodedata.normalize(named, file.name)).path == file
