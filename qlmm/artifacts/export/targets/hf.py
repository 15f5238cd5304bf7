"""The merged model as an ordinary checkpoint, which transformers loads without qlmm and without PEFT.

Usage: ``qlmm export ADAPTER --to hf --out DIR``
"""

from __future__ import annotations

import json
from pathlib import Path

from qlmm.artifacts.export.export import Export, Job, Plan, Written, base_drops
from qlmm.artifacts.export.parity import compared
from qlmm.artifacts.merge.merge import DTYPES, MergePlan, Settings, plan_merge, write_card, write_checkpoint
from qlmm.artifacts.merge.tensor_plan import is_plain

__all__ = ["EXPORT", "merge_of", "merged", "merging_drops", "stored"]


def merging_drops(job: Job) -> tuple[str, ...]:
    """What every merge loses."""
    return ("an adapter that is merged cannot be taken out again, or switched off", *base_drops(job))


def merge_of(job: Job, *, without: frozenset[str] = frozenset()) -> MergePlan:
    """The merge that an export is made from, without the adapter's tensors that are served beside the result."""
    # Measuring loads three models; an export proves what it needs itself.
    settings = Settings(onto=job.wishes.onto, measured=False, without=without)
    return plan_merge(job.folder, job.manifest, job.base, settings)


def merged(job: Job, folder: Path) -> None:
    """Merge the adapter into an empty folder."""
    plan = merge_of(job)
    write_checkpoint(plan, folder, job.tell)
    write_card(plan, folder, None)


def stored(folder: Path) -> str:
    """Precision of a checkpoint's weights, from its configuration."""
    stated = json.loads((folder / "config.json").read_text("utf-8"))["dtype"]
    return next(name for name, dtype in DTYPES.items() if str(dtype) == f"torch.{stated}")


def plan(job: Job) -> Plan:
    """Merging finds everything that stands against it."""
    drops = merging_drops(job)
    if not is_plain(job.base.shape.model):
        drops += (
            "transformers has no class for all of this model, whose connector or tower is qlmm's: it loads only where "
            "qlmm is installed, as README.md shows",
        )
    return Plan(drops, merge_of(job).size)


def write(job: Job, made: Path, way: Path) -> Written:
    """Merge, load by transformers, compare."""
    merged(job, made)
    what = "the merged model, loaded by transformers,"
    return Written((compared(job, what, str(made), onto=job.wishes.onto, stored=stored(made)),))


EXPORT = Export("the merged model as an ordinary checkpoint of transformers", plan, write)
