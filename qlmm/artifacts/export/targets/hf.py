"""The merged model as an ordinary checkpoint, which transformers loads without qlmm and without PEFT.

Usage: ``qlmm export ADAPTER --to hf --out DIR``
"""

from __future__ import annotations

import json
from pathlib import Path

from qlmm.artifacts.export.export import Export, Job, Plan, Written, base_drops
from qlmm.artifacts.export.parity import by_transformers, reference, same
from qlmm.artifacts.merge.merge import DTYPES, MergePlan, Settings, plan_merge, write_card, write_checkpoint
from qlmm.artifacts.merge.tensor_plan import is_plain

__all__ = ["EXPORT", "merge_of", "merged", "merging_drops", "stored"]


def merging_drops(job: Job) -> tuple[str, ...]:
    """What merging loses, whatever becomes of the merged model."""
    return ("an adapter that is merged cannot be taken out again, or switched off", *base_drops(job))


def merge_of(job: Job, *, without: frozenset[str] = frozenset()) -> MergePlan:
    """The merge that an export is made from; whatever of the base's files stands against it is said now.

    Args:
        job: the export.
        without: names of the adapter's tensors that are served beside the result.

    Raises:
        ModelError: as `qlmm merge` for the base's files, M003 and following for those that cannot be had.
    """
    # Measuring loads three models; an export proves what it needs itself.
    settings = Settings(onto=job.wishes.onto, measured=False, without=without)
    return plan_merge(job.folder, job.manifest, job.base, settings)


def merged(job: Job, folder: Path) -> None:
    """Merge the adapter into an empty folder."""
    plan = merge_of(job)
    write_checkpoint(plan, folder, job.tell)
    write_card(plan, folder, None)


def stored(folder: Path) -> str:
    """Precision that a checkpoint says its weights have."""
    stated = json.loads((folder / "config.json").read_text("utf-8"))["dtype"]
    return next(name for name, dtype in DTYPES.items() if str(dtype) == f"torch.{stated}")


def plan(job: Job) -> Plan:
    """Nothing stands against it that merging itself does not find."""
    drops = merging_drops(job)
    if not is_plain(job.shape.model):
        drops += (
            "transformers has no class for all of this model, whose connector or tower is qlmm's: it loads only where "
            "qlmm is installed, as README.md shows",
        )
    return Plan(drops, merge_of(job).size)


def write(job: Job, made: Path, way: Path) -> Written:
    """Merge, load by transformers, compare."""
    merged(job, made)
    job.tell("comparing answers")
    ours = reference(job, onto=job.wishes.onto)
    theirs = by_transformers(str(made), None, job, processor=made, onto=job.wishes.onto)
    line = same(ours, theirs, "the merged model, loaded by transformers,", stored=stored(made))
    return Written((line,), lambda place: ())


EXPORT = Export("the merged model as an ordinary checkpoint of transformers", plan, write)
