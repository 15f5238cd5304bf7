"""The record of a run that a benchmark makes without the command line.

Usage: ``with RunDir.open(folder, record_of(plan)) as directory: …``
"""

from __future__ import annotations

from qlmm.training.plan import Plan
from qlmm.training.run_dir import RunRecord

__all__ = ["record_of"]


def record_of(ready: Plan) -> RunRecord:
    """What a new run by this plan writes down first."""
    return RunRecord(
        recipe=ready.recipe,
        recipe_file="benchmark",
        versions={},
        base=ready.base.identity,
        data=ready.data,
        plan=ready.facts,
    )
