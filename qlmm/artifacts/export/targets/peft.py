"""The adapter as plain PEFT loads it, without qlmm and without qlmm's own files.

Usage: ``qlmm export ADAPTER --to peft --out DIR``
"""

from __future__ import annotations

import shutil
from pathlib import Path

from qlmm.artifacts.adapter.allowed_files import allowed
from qlmm.artifacts.export.export import Export, Job, Plan, Written
from qlmm.artifacts.export.parity import by_transformers, reference, same
from qlmm.core.errors import ModelError
from qlmm.core.filenames import CARD, MANIFEST, PICTURES, PROBE

__all__ = ["EXPORT", "carried"]

OURS = frozenset({MANIFEST, PROBE, CARD})


def plan(job: Job) -> Plan:
    """An assembled base is not there for anybody else.

    Raises:
        ModelError: E010.
    """
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
    if job.shape.parts.bare and job.manifest.recipe.adapter.connector == "full":
        drops.append("PEFT rounds the connector's bare parameters to the dtype of the base")
    return Plan(tuple(drops), sum((job.folder / name).stat().st_size for name in carried(job)))


def carried(job: Job) -> list[str]:
    """Names of the adapter's files that are of use without qlmm: weights, configuration, processor, templates.

    A manifest can come from anywhere: what it names beyond these, or outside the folder, stays where it is.
    """
    names = (name for name in job.manifest.files if allowed(name, job.manifest) and name not in OURS)
    return [name for name in names if not name.startswith(f"{PICTURES}/")]


def write(job: Job, made: Path, way: Path) -> Written:
    """Copy, load by PEFT, compare."""
    for name in carried(job):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(job.folder / name, made / name)
    located = job.base.places["model"]
    job.tell("comparing answers")
    ours = reference(job, onto="original")
    theirs = by_transformers(located.path, made, job, processor=made, onto="original", revision=located.revision)
    line = same(ours, theirs, "the folder, loaded by transformers and PEFT on the unquantised base,", stored="fp32")
    return Written((line,), lambda place: ())


EXPORT = Export("the adapter as plain PEFT loads it", plan, write)
