"""Every code that is raised is explained, every code that is explained is raised, and no code decides anything."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import qlmm
from qlmm.core.error_index import Meaning, index, meaning, page
from qlmm.core.errors import UsageError

PACKAGE = Path(qlmm.__file__).parent
# Makes entries of the zoo, with codes of their own.
MAINTENANCE = sorted((PACKAGE.parent / "maintenance").glob("*.py"))
CODE = re.compile(r"[A-Z]\d{3}")
# Printed by the edge of the command line, where an error that nobody foresaw has no class.
BUG = "X101"


@cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text("utf-8")) for path in [*sorted(PACKAGE.rglob("*.py")), *MAINTENANCE]}


def codes_in(tree: ast.AST) -> Iterator[str]:
    """Whole constants that are codes; those in docstrings and sentences stand beside other words."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
            yield node.value


def raised() -> dict[str, set[str]]:
    """Every code with the classes of error it is raised in."""
    found: dict[str, set[str]] = defaultdict(set)
    for tree in trees().values():
        for code in codes_in(tree):
            found[code] |= set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "one":
                for code in (code for argument in node.args[:1] for code in codes_in(argument)):
                    found[code].add(ast.unparse(node.func.value))
    return found


def test_every_code_that_is_raised_is_explained_and_the_other_way_round() -> None:
    assert sorted(raised()) == sorted(set(index()) - {BUG})
    assert f"error[{BUG}]" in "".join(path.read_text("utf-8") for path in (PACKAGE / "cli").rglob("*.py"))


def test_a_code_leaves_with_one_status() -> None:
    """A code that is a refusal here and a broken run there has two meanings."""
    both = [code for code, kinds in raised().items() if "RunError" in kinds and len(kinds) > 1]
    assert not both


@pytest.mark.parametrize("one", index().values(), ids=lambda one: one.code)
def test_an_explanation_has_a_title_a_reason_and_a_way_out(one: Meaning) -> None:
    assert CODE.fullmatch(one.code)
    assert one.area
    assert len(one.title) <= 90
    assert not one.title.endswith(".")
    assert len(one.why) > 20
    assert len(one.do) > 5


def test_two_codes_do_not_have_one_title() -> None:
    titles = [one.title for one in index().values()]
    assert len(set(titles)) == len(titles)


def test_nothing_is_decided_by_a_code_or_by_the_words_of_a_problem() -> None:
    """Whoever has to tell errors apart catches their classes."""
    asked = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        for side in ast.walk(node)
        if (isinstance(side, ast.Attribute) and side.attr == "code" and "problem" in ast.unparse(side.value))
        or (isinstance(side, ast.Constant) and side.value in index())
        or (isinstance(side, ast.Attribute) and side.attr == "reason")
    ]
    assert not asked


def test_the_page_is_current() -> None:
    committed = (PACKAGE.parent / "docs" / "errors.md").read_text("utf-8")
    assert committed == page(), "write it anew: qlmm explain --markdown > docs/errors.md"


def test_an_unknown_code_is_answered_with_the_nearest() -> None:
    assert meaning("d005").code == "D005"
    with pytest.raises(UsageError, match="no error has the code `D05`") as caught:
        meaning("D05")
    assert "did you mean `D0" in (caught.value.problems[0].help or "")
