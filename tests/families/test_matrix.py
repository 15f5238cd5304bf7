"""docs/families.md says what is so: every family is tried again, from end to end."""

from __future__ import annotations

import pytest

from tests.families.build import names
from tests.families.matrix import PAGE, row, try_family

LINES = PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", names())
def test_the_page_says_what_is_so(name: str) -> None:
    verdict = try_family(name)
    if verdict.done:
        assert row(verdict) in LINES
    else:
        assert f"| `{name}` | {verdict.reason} |" in LINES


def test_at_least_forty_families_work() -> None:
    assert sum(" | works | " in line for line in LINES) >= 40
    assert {line.split("`")[1] for line in LINES if line.startswith("| `")} == set(names())
