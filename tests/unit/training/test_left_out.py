"""Rows are left out as far as the recipe allows, each counted once."""

from __future__ import annotations

import pytest

from qlmm.core.errors import Problem, RunError, Where
from qlmm.core.events import Event, RowLeftOut
from qlmm.training.left_out import LeftOut


def _gone(line: int) -> Problem:
    return Problem("D036", f"picture {line}.png: no such file", Where("rows.jsonl", line))


def test_rows_count_once_and_one_too_many_ends_the_run() -> None:
    seen: list[Event] = []
    left_out = LeftOut(2, 1, [RowLeftOut(1, "rows.jsonl", 7, "before")], seen.append)
    for line in (7, 5, 5, 7):
        left_out.add(4, _gone(line))
    assert seen == [RowLeftOut(4, "rows.jsonl", 5, "row rows.jsonl:5: picture 5.png: no such file")]
    with pytest.raises(
        RunError, match=r"D036(?s:.*)6\.png(?s:.*)rows\.jsonl:6\n.*put the picture back(?s:.*)=4\. Check"
    ):
        left_out.add(5, _gone(6))


def test_by_default_the_first_ends_the_run() -> None:
    with pytest.raises(RunError, match=r"data\.max_bad_rows=1"):
        LeftOut(0, 0, (), lambda event: None).add(1, _gone(3))
