"""An adapter that continues another one is merged, whichever of the two holds the connector."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlmm.training.plan import make_plan
from tests.families.merging import TOLERANCE, adapter_of, merged_equals, shaken
from tests.merge_cases import Case, assembled

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("first", "second"),
    [("lora", "lora"), ("frozen", "frozen"), ("full", "frozen"), ("full", "full")],
)
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_continued_adapter_says_the_same_once_merged(kind: str, first: str, second: str, tmp_path: Path) -> None:
    case = Case(kind)
    plan = make_plan(assembled(tmp_path, case, f"adapter.connector={first}").recipe)
    (tmp_path / "first").mkdir()
    start = adapter_of(plan, shaken(plan), tmp_path / "first")
    continued = assembled(tmp_path, case, f"adapter.connector={second}", f"adapter.start_from={start}")
    assert merged_equals(make_plan(continued.recipe), tmp_path) <= TOLERANCE
