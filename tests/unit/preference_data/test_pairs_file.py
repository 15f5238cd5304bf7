"""A file of pairs loads from where it lies, with its pictures, whatever the prompts were like."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from qlmm.data.reading.dataset import load_samples
from qlmm.data.sample import ImageRef, Origin, Preference, Turn
from qlmm.preference_data.pairs_file import write_pairs
from qlmm.recipe.schema import Source

HERE = Origin("q", 1)


def picture(path: Path, colour: str = "red") -> ImageRef:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.new("RGB", (16, 16), colour).save(path)
    return ImageRef(path=path)


def read(path: Path) -> list[Preference]:
    return list(load_samples([Source(path=str(path))], kind="preference", check_pictures=True).samples)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    first, second = picture(tmp_path / "a.png"), picture(tmp_path / "sub" / "b.png")
    turns = (
        Turn("system", ("Be brief.",)),
        Turn("user", (first, "What? <video>", second)),
        Turn("assistant", ("é",)),
        Turn("user", ("And?",)),
    )
    # In a row without pictures, a marker is text.
    alone = (Turn("user", ("What does <image> mean?",)),)
    pairs = [Preference(turns, "<image> a cat", "a dog\n", HERE), Preference(alone, "1", "2", HERE)]
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    found = read(tmp_path / "pairs.jsonl")
    assert [one.content for one in found] == [one.content for one in pairs]
    assert not (tmp_path / "pairs.jsonl.images").exists()


@pytest.mark.parametrize("place", ["elsewhere/a.png", "out/~a.png"])
def test_a_picture_that_rows_may_not_name_is_copied_once(place: str, tmp_path: Path) -> None:
    ref = picture(tmp_path / place)
    out = tmp_path / "out" / "pairs.jsonl"
    out.parent.mkdir(exist_ok=True)
    inline = ImageRef(data=(tmp_path / place).read_bytes())
    rows = [Preference((Turn("user", (one, "What?")),), "a", "b", HERE) for one in (ref, ref, inline)]
    for _ in range(2):
        write_pairs(out, rows)
    copies = {path.read_bytes() for path in (out.parent / "pairs.jsonl.images").iterdir()}
    assert copies == {inline.data}
    shown = [one.images[0].path for one in read(out)]
    assert [path.read_bytes() for path in shown if path] == [inline.data] * 3


def test_an_old_file_is_untouched_when_a_picture_is_gone(tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    out.write_text("old")
    gone = ImageRef(path=tmp_path.parent / "gone.png")
    with pytest.raises(OSError, match=r"gone\.png"):
        write_pairs(out, [Preference((Turn("user", (gone, "What?")),), "a", "b", HERE)])
    assert out.read_text() == "old"
