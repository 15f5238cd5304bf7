"""A run that goes on has the rows that it was started with, whatever became of their pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from qlmm.core.errors import DataError, RunError
from qlmm.data.media.copies import originals
from qlmm.data.media.images import size
from qlmm.data.media.remembered import NOTHING, Remembered
from qlmm.data.reading.dataset import Loaded, load_samples
from qlmm.data.sample import Example, ImageRef
from qlmm.recipe.schema import Source


def _load(folder: Path, most: float = 0, remembered: Remembered = NOTHING) -> Loaded[Example]:
    return load_samples(
        [Source(path=str(folder / "rows.jsonl"))], max_bad_rows=most, check_pictures=True, remembered=remembered
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five rows, of which the last two show copies of one picture."""
    names = ["0.png", "1.png", "schön.png", "3.png", "4.png"]
    for number, name in enumerate(names):
        Image.new("RGB", (20 + min(number, 3), 20), (min(number, 3) * 9, 0, 0)).save(tmp_path / name)
    rows = [{"image": name, "caption": f"number {place}"} for place, name in enumerate(names)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path


def _started(folder: Path, loaded: Loaded[Example]) -> Remembered:
    same = originals(image for row in loaded.samples for image in row.images)
    Remembered.of(loaded.pictures, same, [one.origin for one in loaded.bad]).write(folder / "pictures.json")
    return Remembered.read(folder / "pictures.json")


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "text", "folder"])
@pytest.mark.parametrize("name", ["1.png", "schön.png", "3.png"])
def test_rows_keep_identity_sizes_and_copies_when_a_picture_is_gone(damage: str, name: str, folder: Path) -> None:
    before = _load(folder)
    remembered, path = _started(folder, before), folder / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"no picture"}[damage])
    with pytest.raises(DataError, match=r"D036(?s:.*)data\.max_bad_rows=1"):
        _load(folder, 0, remembered)
    after = _load(folder, 1, remembered)
    assert (after.samples, after.fingerprint) == (before.samples, before.fingerprint)
    (gone,) = after.unreadable
    assert [row.readable for row in after.samples].index(False) + 1 == gone.origin.line
    images = [image for row in after.samples for image in row.images]
    assert [size(image) for image in images] == [(20 + min(number, 3), 20) for number in range(5)]
    assert remembered.originals(images) == originals_of(before)


def originals_of(loaded: Loaded[Example]) -> dict[ImageRef, ImageRef]:
    images = [image for row in loaded.samples for image in row.images]
    return {image: images[min(number, 3)] for number, image in enumerate(images)}


def test_more_rows_than_allowed_are_refused_and_the_bad_ones_count(folder: Path) -> None:
    remembered = _started(folder, _load(folder))
    for name in ("0.png", "1.png", "3.png"):
        (folder / name).unlink()
    with pytest.raises(DataError, match=r"3 of 5 rows are bad, more than data\.max_bad_rows"):
        _load(folder, 2, remembered)
    with pytest.raises(DataError, match="D006"):
        _load(folder, 0.4, remembered)
    assert _load(folder, 4, remembered).spare == 4
    assert _load(folder, 0.6, remembered).spare == 3


def test_a_row_that_was_left_out_stays_out(folder: Path) -> None:
    content = (folder / "1.png").read_bytes()
    (folder / "1.png").unlink()
    before = _load(folder, 1)
    remembered = _started(folder, before)
    (folder / "1.png").write_bytes(content)
    after = _load(folder, 1, remembered)
    assert (after.samples, after.fingerprint, after.spare) == (before.samples, before.fingerprint, 0)


def test_a_picture_that_was_never_there_is_a_bad_row_like_any_other(folder: Path) -> None:
    (folder / "1.png").unlink()
    assert _load(folder, math.inf, NOTHING).unreadable == ()
    assert len(_load(folder, math.inf, NOTHING).bad) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pictures": 3}', '{"pictures": {"a": {"bytes": "x"}}}', "\ufffd"])
def test_a_file_that_is_not_as_written_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "pictures.json").write_text(text)
    with pytest.raises(RunError, match="C006"):
        Remembered.read(tmp_path / "pictures.json")
