"""The plan of a run names what it does not read, before any weight is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from qlmm.training.plan import make_plan
from tests.runs import TinyRun


def test_the_plan_names_unread_keys_and_markers_that_show_nothing(tmp_path: Path) -> None:
    run = TinyRun.make(tmp_path)
    path = tmp_path / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    turns = [{"role": "user", "content": "<image>Q"}, {"role": "assistant", "content": "A"}]
    blind = {"pic": "0.png", "messages": turns}
    path.write_text("\n".join(json.dumps({**row, "id": number}) for number, row in enumerate([*rows, blind])), "utf-8")
    facts = make_plan(run.recipe().recipe).facts
    assert f"{path}: not used: `id` ({len(rows) + 1} rows), `pic` (1 row)" in facts.notes
    assert any(warning.startswith("markers without a picture: 1 row (`<image>`)") for warning in facts.warnings)
