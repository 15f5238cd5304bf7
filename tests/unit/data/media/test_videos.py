"""Videos become pictures, evenly spaced and always the same; what is damaged is a bad row like a damaged picture."""

from __future__ import annotations

import io
import json
import pickle
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from qlmm.core.errors import DataError
from qlmm.data.errors import BadRow
from qlmm.data.media.images import BadImage, decode, frames, size, thinned
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.media.videos import frame, times
from qlmm.data.reading.checks import check
from qlmm.data.reading.dataset import load_format, load_samples
from qlmm.data.sample import ImageRef, Turn
from qlmm.recipe.schema import Source

FRAMES = 40
SIZE = (64, 48)
# Containers with the codecs that are met in them; B-frames are stored in another order than they are shown in.
KINDS = {
    "mp4": ("libx264", "yuv420p", 2),
    "mov": ("libx264", "yuv420p", 2),
    "mkv": ("libx264", "yuv420p", 2),
    "webm": ("libvpx", "yuv420p", 0),
    "avi": ("mpeg4", "yuv420p", 2),
    "gif": ("gif", "gray", 0),
}


def grey(number: int) -> np.ndarray[Any, Any]:
    """Frame `number` of the test video: the later, the brighter."""
    return np.full((SIZE[1], SIZE[0], 3), number * 6, np.uint8)


def film(
    path: Path, pictures: list[np.ndarray[Any, Any]], codec: str, pixels: str, between: int, turn: int = 0
) -> Path:
    """A video of ten frames a second with a key frame every twelve."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = pixels, 4_000_000
        stream.codec_context.gop_size = 12
        stream.codec_context.max_b_frames = between
        if turn:
            stream.set_display_rotation(turn)
        for picture in pictures:
            shown = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(shown.reformat(format=pixels)))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One video of each kind, and two pictures."""
    made = tmp_path_factory.mktemp("videos")
    for suffix, settings in KINDS.items():
        film(made / f"a.{suffix}", [grey(number) for number in range(FRAMES)], *settings)
    for number in range(10):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(made / f"{number}.png")
    return made


def brightness(picture: Image.Image) -> float:
    return float(np.asarray(picture).mean()) / 6


@pytest.mark.parametrize(
    ("count", "most", "kept"),
    [(3, 8, [0, 1, 2]), (8, 8, list(range(8))), (9, 8, [0, 1, 2, 3, 5, 6, 7, 8]), (10, 1, [5]), (10, 2, [2, 7]),
     (100, 4, [12, 37, 62, 87]), (0, 8, [])],
)  # fmt: skip
def test_thinning_takes_the_middle_of_equal_stretches(count: int, most: int, kept: list[int]) -> None:
    assert list(thinned(range(count), most)) == kept


@pytest.mark.parametrize("suffix", KINDS)
def test_a_file_is_shown_as_evenly_spaced_frames(folder: Path, suffix: str) -> None:
    shown = frames(ImageRef(path=folder / f"a.{suffix}"), 4)
    pictures = [decode(ref) for ref in shown]
    assert [round(brightness(picture)) for picture in pictures] == [5, 15, 25, 35]
    assert {size(ref) for ref in shown} == {picture.size for picture in pictures} == {SIZE}
    assert {picture.mode for picture in pictures} == {"RGB"}
    assert [decode(ref).tobytes() for ref in reversed(shown)] == [p.tobytes() for p in reversed(pictures)]
    assert pickle.loads(pickle.dumps(shown)) == shown


@pytest.mark.parametrize("suffix", KINDS)
def test_every_frame_can_be_had(folder: Path, suffix: str) -> None:
    data = (folder / f"a.{suffix}").read_bytes()
    found = times(io.BytesIO(data))
    assert len(found) == FRAMES
    assert found == sorted(found)
    told = [brightness(frame(io.BytesIO(data), at)) for at in found]
    assert max(abs(one - number) for number, one in enumerate(told)) < 0.8


class Counted(io.BytesIO):
    """Counts the bytes that are read."""

    taken = 0

    def read(self, count: int | None = -1) -> bytes:
        data = super().read(count)
        self.taken += len(data)
        return data


def test_a_frame_is_read_from_its_key_frame_not_from_the_beginning(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    pictures = [noise.integers(0, 256, (96, 128, 3), np.uint8) for _ in range(96)]
    data = film(tmp_path / "noise.mp4", pictures, "libx264", "yuv420p", 0).read_bytes()
    stream = Counted(data)
    last = times(io.BytesIO(data))[-1]
    frame(stream, last)
    assert len(data) > 500_000
    assert stream.taken < len(data) / 3


@pytest.mark.parametrize(("turn", "upright"), [(90, (48, 64)), (-90, (48, 64)), (180, SIZE)])
def test_a_turned_video_is_shown_upright(tmp_path: Path, turn: int, upright: tuple[int, int]) -> None:
    half = grey(0)
    half[:, : SIZE[0] // 2] = 255
    path = film(tmp_path / "turned.mp4", [half] * 3, "libx264", "yuv420p", 0, turn)
    (ref,) = frames(ImageRef(path=path), 1)
    expected = Image.fromarray(half).rotate(turn, expand=True)
    assert size(ref) == decode(ref).size == expected.size == upright
    assert np.abs(np.asarray(decode(ref)).astype(int) - np.asarray(expected).astype(int)).mean() < 8


def test_a_frame_has_a_name_that_says_when(folder: Path) -> None:
    assert frames(ImageRef(path=folder / "a.mp4"), 2)[1].name == "a.mp4 at 3.00 s"
    assert ImageRef(data=b"abc", at=Fraction(1, 3)).name == "<3 bytes> at 0.33 s"


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("percent", [0, 1, 10, 50, 90, 99])
def test_a_cut_video_is_an_error(folder: Path, suffix: str, percent: int) -> None:
    whole = (folder / f"a.{suffix}").read_bytes()
    with pytest.raises(BadImage, match=r"cut off|not a video|empty"):
        frames(ImageRef(data=whole[: len(whole) * percent // 100]), 4)


def without_frames() -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format="matroska") as container:
        sound = container.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not a video in one of the formats MP4"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "not a video"),
        (b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00", "cannot be decoded"),
        (without_frames(), "no picture stream in it"),
    ],
    ids=["empty", "playlist", "concatenation", "nothing but a header", "sound alone"],
)
def test_what_is_no_video_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        frames(ImageRef(data=data), 4)


def said(turns: tuple[Turn, ...]) -> list[list[str]]:
    return [[part.name if isinstance(part, ImageRef) else part for part in turn.parts] for turn in turns]


TWO = ["a.mp4 at 1.00 s", "a.mp4 at 3.00 s"]
STILLS = [f"{number}.png" for number in range(10)]
THINNED = ["2.png", "7.png"]
REPLY = {"role": "assistant", "content": "A"}


def asked(content: Any, **row: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, REPLY], **row}


def spoken(value: str, **row: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": "A"}], **row}


@pytest.mark.parametrize(
    ("name", "row", "question"),
    [
        ("messages", asked([{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Q"}]), [*TWO, "Q"]),
        ("messages", asked([{"type": "text", "text": "Q"}, {"type": "video", "video": STILLS}]), ["Q", *THINNED]),
        ("messages", asked([{"type": "video"}, {"type": "text", "text": "Q"}], videos=["a.mp4"]), [*TWO, "Q"]),
        ("messages", asked("Q", videos=["a.mp4", STILLS]), [*TWO, *THINNED, "Q"]),
        ("messages", asked("Q", videos="a.mp4", images=["0.png"]), ["0.png", *TWO, "Q"]),
        ("messages", asked("This <video>\nor <image> ?", videos=[STILLS], images=["0.png"]),
         ["This ", *THINNED, "or ", "0.png", " ?"]),
        ("messages", asked("The <video> tag?"), ["The <video> tag?"]),
        ("llava", spoken("<video>\nQ", video="a.mp4"), [*TWO, "Q"]),
        ("llava", spoken("Q", video=STILLS), [*THINNED, "Q"]),
        ("llava", spoken("<image>\nQ", video="a.mp4"), [*TWO, "Q"]),
        ("llava", spoken("<image> or <video>?", video=STILLS, image="0.png"), ["0.png", "or ", *THINNED, "?"]),
        ("llava", spoken("Q", video="a.mp4", image="0.png"), ["0.png", *TWO, "Q"]),
        ("llava", spoken("The <video> tag?"), ["The <video> tag?"]),
    ],
)  # fmt: skip
def test_rows_name_videos_in_the_spellings_that_are_about(
    folder: Path, name: str, row: dict[str, Any], question: list[str]
) -> None:
    assert said(load_format(name).read(row, ImageRoot(folder, max_frames=2))) == [question, ["A"]]


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("messages", asked([{"type": "video", "video": "../a.mp4"}]), "contains `..`"),
        ("messages", asked("Q", videos=["/etc/a.mp4"]), "is absolute"),
        ("messages", asked("Q", videos=["https://example.org/a.mp4"]), "is a URL"),
        ("messages", asked("Q", videos=["out.mp4"]), "leads out"),
        ("messages", asked("Q", videos=[["0.png", "../0.png"]]), "contains `..`"),
        ("messages", asked("Q", videos=["0.png"]), "video 0.png: not a video in one of the formats"),
        ("messages", asked("Q", videos=[[]]), "a video without frames"),
        ("messages", asked("<video> <video>", videos=["a.mp4"]), "2 <video> markers for 1 videos"),
        ("messages", asked([{"type": "video"}, {"type": "video"}], videos=["a.mp4"]), "more video parts than videos"),
        ("messages", asked([{"type": "video"}], videos=["a.mp4", "a.mp4"]), "1 video parts for 2 videos"),
        ("llava", spoken("<video> <video>", video="a.mp4"), "2 <video> markers for 1 videos"),
        ("llava", spoken("Q", video="../a.mp4"), "contains `..`"),
    ],
)
def test_rows_that_name_videos_badly_say_why(folder: Path, name: str, row: dict[str, Any], reason: str) -> None:
    link = folder / "out.mp4"
    if not link.is_symlink():
        link.symlink_to("/etc/passwd")
    with pytest.raises(BadRow) as caught:
        load_format(name).read(row, ImageRoot(folder))
    assert reason in caught.value.reason
    assert caught.value.help


def test_encoded_videos_of_data_sets_are_taken(folder: Path) -> None:
    data = (folder / "a.webm").read_bytes()
    shown = ImageRoot(folder, max_frames=3).video({"bytes": data, "path": "/elsewhere/a.webm"})
    assert [round(brightness(decode(ref))) for ref in shown] == [6, 20, 33]


def rows(folder: Path, *videos: str) -> Source:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(spoken("<video>\nQ", video=video)) + "\n" for video in videos))
    return Source(path=str(path))


def test_damaged_and_missing_videos_are_told_with_file_and_line(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "a.mp4").read_bytes()
    (tmp_path / "whole.mp4").write_bytes(whole)
    (tmp_path / "cut.mp4").write_bytes(whole[:-300])
    (tmp_path / "empty.mp4").write_bytes(b"")
    report = check([rows(tmp_path, "whole.mp4", "cut.mp4", "empty.mp4", "gone.mp4")], max_frames=3)
    told = {one.where.line: one.message for one in report.problems if one.where}
    assert told == {2: "video cut.mp4: the file is cut off", 3: "video empty.mp4: the file is empty"}
    assert [one.code for one in report.problems] == ["D005", "D001", "D001"]
    assert (report.pictures, len(report.usable)) == (3, 1)


def test_a_frame_that_cannot_be_decoded_is_a_bad_picture(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    pictures = [noise.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(20)]
    data = bytearray(film(tmp_path / "a.avi", pictures, "mjpeg", "yuvj420p", 0).read_bytes())
    start, end = data.index(b"movi") + 4, data.index(b"idx1")
    data[(start + end) // 2 : end] = bytes(end - (start + end) // 2)
    (tmp_path / "a.avi").write_bytes(bytes(data))
    report = check([rows(tmp_path, "a.avi")])
    assert report.problems
    assert report.usable == ()


def test_the_fingerprint_sees_which_frames_are_shown(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes((folder / "a.mp4").read_bytes())
    source = rows(tmp_path, "a.mp4")
    assert len({load_samples([source], max_frames=most).fingerprint for most in (1, 2, 3, 3)}) == 3


def test_without_pyav_the_package_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.mp4").write_bytes((folder / "a.mp4").read_bytes())
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match="D009") as caught:
        load_samples([rows(tmp_path, "b.mp4")])
    (problem,) = caught.value.problems
    assert problem.help == 'pip install "qlmm[video]"'
    # Frames that are pictures need nothing.
    assert ImageRoot(folder).video(STILLS)


def test_frames_over_the_limit_are_refused_before_any_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qlmm.data.media import images

    monkeypatch.setattr(images, "MAX_PIXELS", 3_000)
    with pytest.raises(BadImage, match="64 × 48 is more than the 3,000 pixels allowed"):
        frames(ImageRef(data=(folder / "a.mkv").read_bytes()), 7)
