"""The merged model as an ordinary checkpoint, which transformers loads without qlmm and without PEFT.

Usage: ``qlmm export ADAPTER --to hf --out DIR``
"""

from __future__ import annotations

import json
from pathlib import Path

from qlmm.artifacts.export import Export, Job, Plan, Written, base_drops
from qlmm.artifacts.merge import Settings, merge
from qlmm.artifacts.same import by_transformers, reference, same
from qlmm.model.assembled.config import AssembledConfig

__all__ = ["EXPORT", "merged", "merging_drops", "stored"]


DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def merging_drops(job: Job) -> tuple[str, ...]:
    """What merging loses, whatever becomes of the merged model."""
    return ("an adapter that is merged cannot be taken out again, or switched off", *base_drops(job))


def merged(job: Job, folder: Path) -> None:
    """Merge the adapter into a folder that is empty or not there."""
    # Measuring loads three models; the export proves what it needs itself.
    merge(str(job.folder), folder, Settings(onto=job.wishes.onto, measured=False), job.tell)


def stored(folder: Path) -> str:
    """Precision that a checkpoint says its weights have."""
    return DTYPES[json.loads((folder / "config.json").read_text("utf-8"))["dtype"]]


def plan(job: Job) -> Plan:
    """Nothing stands against it that merging itself does not find."""
    drops = merging_drops(job)
    if isinstance(job.shape.model.config, AssembledConfig):
        kind = job.manifest.recipe.base.connector
        name = kind.kind if kind is not None else "this"
        drops += (f"transformers has no class for a model with the connector {name}: `import qlmm` must come first",)
    return Plan(drops, job.weights_bytes)


def write(job: Job, made: Path, way: Path) -> Written:
    """Merge, load by transformers, compare."""
    merged(job, made)
    job.tell("comparing answers")
    ours = reference(job.folder, job.manifest, onto=job.wishes.onto)
    theirs = by_transformers(str(made), None, job.folder, job.manifest, processor=made, onto=job.wishes.onto)
    line = same(ours, theirs, "the merged model, loaded by transformers,", stored=stored(made))
    return Written((line,), ())


EXPORT = Export("the merged model as an ordinary checkpoint of transformers", plan, write)
