"""The merged model as an ordinary checkpoint, which transformers loads without qlmm and without PEFT.

Usage: ``qlmm export ADAPTER --to hf --out DIR``
"""

from __future__ import annotations

import json
from pathlib import Path

from qlmm.artifacts.export.export import Export, Job, Plan, Written, base_drops
from qlmm.artifacts.export.parity import by_transformers, reference, same
from qlmm.artifacts.merge.base_storage import held_by
from qlmm.artifacts.merge.deltas import Deltas
from qlmm.artifacts.merge.merge import DTYPES, Settings, merge
from qlmm.artifacts.merge.tensor_plan import Sources, is_plain

__all__ = ["EXPORT", "merged", "merged_size", "merging_drops", "stored"]


def merging_drops(job: Job) -> tuple[str, ...]:
    """What merging loses, whatever becomes of the merged model."""
    return ("an adapter that is merged cannot be taken out again, or switched off", *base_drops(job))


def merged_size(job: Job) -> int:
    """Bytes of the merged model; whatever of the base's files stands against merging is said now.

    Raises:
        ModelError: as `merge` for the base's files, M003 and following for those that cannot be had.
    """
    held = held_by(job.manifest, job.base) if job.wishes.onto == "trained" else None
    outputs = Sources.of(job.manifest, job.base).outputs(Deltas(job.folder, job.shape.model, held), None)
    return sum(one.size for one in outputs)


def merged(job: Job, folder: Path) -> None:
    """Merge the adapter into a folder that is empty or not there."""
    # Measuring loads three models; the export proves what it needs itself.
    settings = Settings(onto=job.wishes.onto, measured=False)
    merge(str(job.folder), folder, settings, job.tell, base=job.base)


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
    return Plan(drops, merged_size(job))


def write(job: Job, made: Path, way: Path) -> Written:
    """Merge, load by transformers, compare."""
    merged(job, made)
    job.tell("comparing answers")
    ours = reference(job, onto=job.wishes.onto)
    theirs = by_transformers(str(made), None, job, processor=made, onto=job.wishes.onto)
    line = same(ours, theirs, "the merged model, loaded by transformers,", stored=stored(made))
    return Written((line,), lambda place: ())


EXPORT = Export("the merged model as an ordinary checkpoint of transformers", plan, write)
