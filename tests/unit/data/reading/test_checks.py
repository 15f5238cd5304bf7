"""Checking rows finds every problem there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qlmm.core.errors import DataError
from qlmm.data.reading.checks import check
from qlmm.recipe.schema import Source


def write(folder: Path, rows: list[Any]) -> Source:
    path = folder / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return Source(path=str(path))


def test_every_kind_of_problem_is_found_at_once(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-500])
    rows = [
        {"image": "a.png", "caption": "A"},
        "{",
        {"image": "cut.png", "caption": "B"},
        {"image": "none.png", "caption": "C"},
        {"image": "a.png", "caption": " "},
        {"image": "a.png", "caption": "A"},
    ]
    told: list[tuple[int, int]] = []
    report = check([write(tmp_path, rows)], progress=lambda done, total: told.append((done, total)))
    assert [problem.code for problem in report.problems] == ["D005", "D001", "D001", "D020"]
    assert [problem.where.line for problem in report.problems if problem.where] == [2, 5, 3]
    assert (report.pictures, report.twins, len(report.usable)) == (2, 1, 2)
    assert told == [(1, 2), (2, 2)]


def test_nothing_readable_still_lists_the_problems(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        check([write(tmp_path, ["{", "["])])
    assert len(caught.value.problems) == 3
