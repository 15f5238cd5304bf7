"""The adapter as plain PEFT loads it, without qlmm and without qlmm's own files.

Usage: ``qlmm export ADAPTER --to peft --out DIR``
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from qlmm.artifacts.adapter.allowed_files import allowed
from qlmm.artifacts.export.export import Export, Job, Plan, Written
from qlmm.artifacts.export.parity import compared
from qlmm.core.errors import ModelError
from qlmm.core.filenames import CARD, MANIFEST, PICTURES, PROBE

__all__ = ["EXPORT", "carried", "copy_carried"]

OURS = frozenset({MANIFEST, PROBE, CARD})


def plan(job: Job) -> Plan:
    """Refuse an assembled base, which is there for nobody else, with E010."""
    base = job.manifest.recipe.base
    if base.model is None:
        raise ModelError.one(
            "E010",
            "this adapter's base is put together from parts when it is loaded, which PEFT cannot do",
            help="export --to hf gives one ordinary model; --to vllm a base and an adapter beside it",
        )
    drops = ["qlmm.json and the probe stay behind: qlmm verify, merge and export need the adapter folder itself"]
    if base.quantize != "none":
        drops.append(f"PEFT does not know that the base was {base.quantize}: load it so, or answers differ a little")
    if job.base.shape.parts.bare and job.manifest.recipe.adapter.connector == "full":
        drops.append("PEFT rounds the connector's bare parameters to the dtype of the base")
    return Plan(tuple(drops), sum((job.folder / name).stat().st_size for name in carried(job)))


def carried(job: Job) -> list[str]:
    """Names of the adapter's files that are of use without qlmm: weights, configuration, processor, templates.

    A manifest can come from anywhere: what it names beyond these, or outside the folder, stays where it is.
    """
    names = (name for name in job.manifest.files if allowed(name, job.manifest) and name not in OURS)
    return [name for name in names if not name.startswith(f"{PICTURES}/")]


def copy_carried(job: Job, into: Path, *, without: Collection[str] = ()) -> None:
    """Copy the files that are of use without qlmm."""
    for name in carried(job):
        if name not in without:
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(job.folder / name, into / name)


def write(job: Job, made: Path, way: Path) -> Written:
    """Copy, load by PEFT, compare."""
    copy_carried(job, made)
    base = job.base.places["model"]
    what = "the folder, loaded by transformers and PEFT on the unquantised base,"
    line = compared(job, what, base.path, made, revision=base.revision, onto="original", stored="fp32")
    return Written((line,))


EXPORT = Export("the adapter as plain PEFT loads it", plan, write)
