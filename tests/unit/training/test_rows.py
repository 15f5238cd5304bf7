"""Rows that are learned are not measured, however they come to be on both sides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qlmm.core.errors import DataError
from qlmm.data.encoding.encoder import Encoder
from qlmm.recipe.load import parse_recipe
from qlmm.training.rows import Rows, read_rows
from tests.runs import RECIPE, picture_row
from tests.tiny import tiny_processor


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.make(tiny_processor("vicuna"), max_length=200)


def written(folder: Path, name: str, rows: Sequence[Any]) -> str:
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return f"[{{path: {folder}/{name}}}]"


def rows_of(folder: Path, encoder: Encoder, *overrides: str) -> Rows:
    return read_rows(parse_recipe(RECIPE.format(folder=folder), "tiny.yaml", list(overrides)).recipe, encoder)


def test_rows_to_measure_on_that_are_trained_on_are_left_out_and_named(tmp_path: Path, encoder: Encoder) -> None:
    rows = [picture_row(tmp_path, number) for number in range(6)]
    written(tmp_path, "rows.jsonl", rows[:4])
    # A copy of a picture under another name is the same picture.
    (tmp_path / "copy.png").write_bytes((tmp_path / "1.png").read_bytes())
    other = {**rows[2], "messages": [{"role": "user", "content": "why ?"}, {"role": "assistant", "content": "so"}]}
    aside = written(tmp_path, "aside.jsonl", [rows[0], {**rows[1], "images": ["copy.png"]}, other, rows[5]])
    found = rows_of(tmp_path, encoder, f"evaluation.sources={aside}")
    assert [row.origin.line for row in found.seen_rows] == [1, 2]
    assert [row.origin.line for row in found.held_out] == [3, 4]
    assert found.seen == ("picture", "nothing")
    assert len(found.train.samples) == 4


def test_a_run_that_would_be_measured_on_what_it_learned_is_refused(tmp_path: Path, encoder: Encoder) -> None:
    rows = written(tmp_path, "rows.jsonl", [picture_row(tmp_path, number) for number in range(4)])
    with pytest.raises(DataError) as caught:
        rows_of(tmp_path, encoder, f"evaluation.sources={rows}")
    assert caught.value.problems[0].code == "D047"
    assert "all 4 rows" in caught.value.text


def test_rows_that_are_on_neither_side_are_counted(tmp_path: Path, encoder: Encoder) -> None:
    rows = []
    for number in range(8):
        row = picture_row(tmp_path, number)
        for question in range(20):
            asked = {"role": "user", "content": f"question {question} ?"}
            rows.append({**row, "messages": [asked, {"role": "assistant", "content": "yes"}]})
    written(tmp_path, "rows.jsonl", rows)
    found = rows_of(tmp_path, encoder, "evaluation.rows=16")
    assert len(found.held_out) == 16
    assert set(found.seen) == {"nothing"}
    assert found.dropped == {"of a held-out picture": 4}
    assert len(found.train.samples) == 140
