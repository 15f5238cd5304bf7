"""Records go on where they were: a torn line is dropped, other settings and damage are refused, one process writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlmm.core.errors import QlmmError
from qlmm.preference_data.records import JudgedAnswer, JudgedStatement, Record, Records, Settings

SETTINGS = {"answers": 10, "judge": "the adapter itself"}


def record(number: int) -> Record:
    """A record whose text holds a line end of JSON's and one of Python's, neither of which may cut a line."""
    stated = JudgedStatement(statement="A cat.", question="Is it?", yes=0.25, no=0.5, refuted=True)
    answers = (
        JudgedAnswer(text="é\n\u2028", split_by="judge", statements=(stated,), score=-1),
        JudgedAnswer(text="", split_by="sentences", statements=(), score=None),
    )
    return Record(
        prompt=number,
        origin="q.jsonl:1",
        question="What?",
        pictures=("a.png",),
        seed=7,
        answers=answers,
        candidates=1,
        pairs=((1, 0),),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "pairs.jsonl.records.jsonl"
    write(found, 3)
    return found


def write(path: Path, until: int, settings: Settings = SETTINGS) -> None:
    with Records.open(path, settings) as records:
        for number in range(len(records.done), until):
            records.append(record(number))


def refusal(path: Path, settings: Settings = SETTINGS) -> QlmmError:
    before = path.read_bytes()
    with pytest.raises(QlmmError) as caught, Records.open(path, settings):
        pass
    assert path.read_bytes() == before
    assert caught.value.problems[0].help
    return caught.value


def test_it_goes_on_where_it_was(path: Path, tmp_path: Path) -> None:
    write(path, 5)
    write(tmp_path / "whole", 5)
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_each_record_is_in_the_file_at_once(tmp_path: Path) -> None:
    with Records.open(tmp_path / "r", SETTINGS) as records:
        assert (tmp_path / "r").read_bytes().count(b"\n") == 1
        records.append(record(0))
        assert (tmp_path / "r").read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_torn_last_line_is_dropped(path: Path, tmp_path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[:-cut])
    with Records.open(path, SETTINGS) as records:
        assert len(records.done) == 2
    write(path, 3)
    write(tmp_path / "whole", 3)
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_file_torn_in_its_first_line_begins_anew(path: Path, tmp_path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9])
    write(path, 1)
    write(tmp_path / "whole", 1)
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_other_settings_are_refused_by_name(path: Path) -> None:
    error = refusal(path, {"answers": 5, "judge": "the adapter itself", "seed": 1})
    (problem,) = error.problems
    assert (problem.code, error.exit_code) == ("J003", 2)
    assert "answers (10 then, 5 now), seed (null then, 1 now)" in problem.message
    assert "judge" not in problem.message.partition("settings:")[2]


def test_a_record_comes_back_as_it_was_written(path: Path) -> None:
    with Records.open(path, SETTINGS) as records:
        assert records.done == [record(number) for number in range(3)]


OTHER = json.dumps(record(7).model_dump()).encode()
FURTHER = json.dumps({**record(1).model_dump(), "score": 1}).encode()


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"prompt": 1}', b"\xff", OTHER, FURTHER])
def test_a_line_that_does_not_belong_is_refused_by_number(path: Path, line: bytes) -> None:
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]) + b"\n")
    (problem,) = refusal(path).problems
    assert problem.code == "J004"
    assert "line 3" in problem.message


def test_a_file_of_something_else_is_refused(path: Path) -> None:
    path.write_text('{"prompt": 0}\n')
    assert refusal(path).problems[0].code == "J004"


def test_only_one_process_writes(path: Path) -> None:
    with Records.open(path, SETTINGS):
        assert refusal(path).problems[0].code == "J005"
