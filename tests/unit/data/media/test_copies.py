"""Copies of a picture are known by their bytes, and by nothing else."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from qlmm.data.media import copies
from qlmm.data.media.copies import originals
from qlmm.data.sample import ImageRef

LONG = bytes(range(256)) * 64


def _file(folder: Path, name: str, content: bytes) -> ImageRef:
    (folder / name).write_bytes(content)
    return ImageRef(path=folder / name)


def test_a_copy_under_another_name_or_inline_is_the_same_picture(tmp_path: Path) -> None:
    first, copy, inline = _file(tmp_path, "a", LONG), _file(tmp_path, "b", LONG), ImageRef(data=LONG)
    assert originals([first, copy, inline]) == dict.fromkeys([first, copy, inline], first)


@pytest.mark.parametrize("other", [LONG + b"x", LONG[:-1] + b"x", b"x" + LONG[1:]])
def test_one_other_byte_makes_another_picture(other: bytes, tmp_path: Path) -> None:
    first, second = _file(tmp_path, "a", LONG), _file(tmp_path, "b", other)
    assert originals([first, second]) == {first: first, second: second}


def test_pictures_that_are_not_there_are_like_nothing_else(tmp_path: Path) -> None:
    gone, away = ImageRef(path=tmp_path / "a"), ImageRef(path=tmp_path / "b")
    assert originals([gone, away]) == {gone: gone, away: away}


def test_frames_of_a_video_are_one_picture(tmp_path: Path) -> None:
    frames = [ImageRef(path=tmp_path / "v.mp4", at=Fraction(second)) for second in range(2)]
    assert len(set(originals(frames).values())) == 1


def test_only_files_that_may_be_copies_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[ImageRef] = []
    monkeypatch.setattr(copies, "_opened", read.append)
    originals([_file(tmp_path, "a", b"1"), _file(tmp_path, "b", b"22")])
    assert not read
