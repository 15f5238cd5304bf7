"""Checking rows finds every problem there is, and shows what a model would learn from a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qlmm.core.errors import DataError
from qlmm.data.checks import Piece, Spread, check, token_counts, traced
from qlmm.data.encoding.encoder import Encoder
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.sample import Origin, Sample, Turn
from qlmm.recipe.schema import Source
from tests.tiny import TOKENS_PER_IMAGE, tiny_processor


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


@pytest.mark.parametrize(
    ("values", "spread"),
    [([], (0, 0, 0)), ([7], (7, 7, 7)), (list(range(1, 101)), (50, 95, 100)), ([3, 1, 2], (2, 3, 3))],
)
def test_spread_is_by_nearest_rank(values: list[int], spread: tuple[int, int, int]) -> None:
    assert Spread.of(values) == Spread(*spread)


PICTURE = ImageRoot(".").ref(Image.new("RGB", (4, 4)))
ROW = Sample(
    (
        Turn("user", (PICTURE, PICTURE, "What?")),
        Turn("assistant", ("A cat.",)),
        Turn("user", ("Q",)),
        Turn("assistant", ("R",)),
    ),
    Origin("x", 1),
)


def test_a_row_is_traced_from_its_tensors() -> None:
    pieces = traced(Encoder(tiny_processor("owl")), ROW)
    assert pieces[:2] == [
        Piece("given", "<s>\nHuman: ", pieces[0].tokens),
        Piece("picture", "<image>", TOKENS_PER_IMAGE),
    ]
    assert [(piece.kind, piece.text) for piece in pieces[2:]] == [
        ("given", "\nHuman: "),
        ("picture", "<image>"),
        ("given", "\nHuman: What?\nAI: "),
        ("learned", "A cat.</s>"),
        ("given", "\nHuman: Q\nAI: "),
        ("learned", "R</s>"),
    ]
    assert sum(piece.tokens for piece in pieces) == Encoder(tiny_processor("owl")).measure([ROW])[0].total


def test_neighbouring_pictures_are_told_apart() -> None:
    kinds = [piece.kind for piece in traced(Encoder(tiny_processor("chatml")), ROW)]
    assert kinds == ["given", "picture", "picture", "given", "learned", "given", "learned", "given"]


def test_token_counts_over_rows() -> None:
    encoder = Encoder(tiny_processor("owl"))
    counts = token_counts(encoder, [ROW, ROW])
    (lengths,) = encoder.measure([ROW])
    assert counts.total == Spread(lengths.total, lengths.total, lengths.total)
    assert counts.visual_share == lengths.visual / lengths.total
    assert token_counts(Encoder(tiny_processor("owl"), max_length=5), [ROW]).dropped[0].origin == ROW.origin
