"""A run whose rows have thoughts records that its adapter is asked for one; one that rules them out does not start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trl

from qlmm.core.errors import ModelError
from qlmm.training.plan import make_plan
from tests.runs import TinyRun


def test_the_plan_decides_by_the_rows_and_records_it(tmp_path: Path) -> None:
    run, path = TinyRun.make(tmp_path), tmp_path / "rows.jsonl"
    template = Path(trl.__file__).parent / "chat_templates/qwen3_training.jinja"
    base = f"base.chat_template={template}"
    assert make_plan(run.recipe(base).recipe).recipe.data.thinking is None
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for row in rows[::2]:
        row["messages"][-1]["content"] = f"<think>hm</think>{row['messages'][-1]['content']}"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    plan = make_plan(run.recipe(base).recipe)
    assert plan.recipe.data.thinking is True
    assert plan.encoder.thinks
    with pytest.raises(ModelError, match="D045"):
        make_plan(run.recipe(base, "data.thinking=false").recipe)
