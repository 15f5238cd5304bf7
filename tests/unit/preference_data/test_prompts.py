"""Questions are read from every format, with and without an answer; what cannot be asked is told with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qlmm.core.errors import DataError
from qlmm.preference_data.prompts import Questions, read_questions
from qlmm.recipe.schema import Source

USER = {"role": "user", "content": "What?"}
SAID = {"role": "assistant", "content": "A cat."}
HUMAN, GPT = {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}
ASKED: list[dict[str, Any]] = [
    {"messages": [USER], "images": ["a.png"]},
    {"messages": [USER, SAID], "images": ["a.png"]},
    {"conversations": [HUMAN], "image": "a.png"},
    {"conversations": [HUMAN, GPT], "image": "a.png"},
    {"prompt": "What?", "image": "a.png"},
    {"prompt": [USER], "image": "a.png"},
    {"prompt": "What?", "completion": "A cat.", "image": "a.png"},
    {"prompt": "What?", "chosen": "A cat.", "rejected": "A dog.", "image": "a.png"},
]


def asked(folder: Path, *rows: Any, limit: int | None = None) -> Questions:
    Image.new("RGB", (16, 16), "red").save(folder / "a.png")
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_questions(Source(path=str(folder / "q.jsonl")), limit=limit)


@pytest.mark.parametrize("row", ASKED, ids="+".join)
def test_a_row_is_asked_up_to_its_last_question(row: dict[str, Any], tmp_path: Path) -> None:
    (sample,) = asked(tmp_path, row).samples
    assert [turn.role for turn in sample.turns] == ["user"]
    assert sample.turns[0].text == "What?"
    assert [ref.name for ref in sample.images] == ["a.png"]


def test_earlier_answers_are_history(tmp_path: Path) -> None:
    (sample,) = asked(tmp_path, {"messages": [USER, SAID, USER]}).samples
    assert [turn.role for turn in sample.turns] == ["user", "assistant", "user"]


def test_a_limit_takes_the_first_and_changes_no_fingerprint(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"Question {number}?"}]} for number in range(5)]
    some, whole = asked(tmp_path, *rows, limit=2), asked(tmp_path, *rows)
    assert [sample.turns[0].text for sample in some.samples] == ["Question 0?", "Question 1?"]
    assert some.fingerprint == whole.fingerprint
    assert asked(tmp_path, *rows[:4]).fingerprint != whole.fingerprint


def test_another_picture_is_another_fingerprint(tmp_path: Path) -> None:
    before = asked(tmp_path, ASKED[0]).fingerprint
    Image.effect_noise((64, 64), 90).save(tmp_path / "a.png")
    assert read_questions(Source(path=str(tmp_path / "q.jsonl"))).fingerprint != before


@pytest.mark.parametrize(
    ("row", "code", "says"),
    [
        ({"foo": 1}, "D004", "no known format"),
        ({"messages": []}, "D001", "no answer"),
        ({"messages": [{"role": "user", "content": " "}]}, "D001", "empty question"),
        ({"messages": [USER], "images": ["b.png"]}, "D001", "b.png is missing"),
        ({"messages": [USER], "images": ["../a.png"]}, "D001", "contains `..`"),
        ({"messages": [USER], "images": ["q.jsonl"]}, "D001", "picture q.jsonl"),
    ],
)
def test_a_row_that_cannot_be_asked_is_refused(row: Any, code: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as caught:
        asked(tmp_path, row)
    assert caught.value.problems[0].code == code


def test_every_bad_row_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        asked(tmp_path, ASKED[0], {"messages": []}, ASKED[0], 7)
    assert [problem.where.line for problem in caught.value.problems if problem.where] == [2, 4]


def test_an_empty_file_asks_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        asked(tmp_path)
    assert caught.value.problems[0].code == "D007"
