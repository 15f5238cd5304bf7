"""docs/reliability.md: every test that it names exists, every fault is there and has a test or a reason."""

from __future__ import annotations

import ast
import re

import pytest

from tests.pages import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text("utf-8")
ROWS = re.findall(r"^\| (\d+) \| (.+) \|$", PAGE, re.MULTILINE)
GUARANTEES = re.findall(r"^\| (G\d+) \| .+ \| `(tests/[\w/]+\.py)` \|$", PAGE, re.MULTILINE)
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)))


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.split("|")]


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_every_test_that_is_named_exists(file: str) -> None:
    body = ast.parse((ROOT / file).read_text("utf-8"))
    defined = {node.name for node in ast.walk(body) if isinstance(node, ast.FunctionDef)}
    assert {name for where, name in NAMED if where == file} <= defined


def test_every_fault_is_there_once() -> None:
    assert [int(number) for number, _ in ROWS] == list(range(1, 68))


@pytest.mark.parametrize(("number", "row"), ROWS, ids=[number for number, _ in ROWS])
def test_a_fault_has_a_test_or_a_reason(number: str, row: str) -> None:
    fault, _, tests, missing = cells(row)
    assert fault
    assert missing or tests, number
    assert not re.sub(r"`tests/[\w/]+\.py::test_\w+`(?:, )?", "", tests), "something else than tests"


def test_every_guarantee_has_a_file_of_tests() -> None:
    assert [name for name, _ in GUARANTEES] == [f"G{number}" for number in range(1, 11)]
    assert not [file for _, file in GUARANTEES if not (ROOT / file).is_file()]
