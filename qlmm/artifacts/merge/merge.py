"""An adapter merged into its base, shard by shard: an ordinary checkpoint, whatever its size.

Two bases can be meant. The original is what the model's authors published. But LoRA was fitted to the base as the run
held it, quantised and rounded: added to the original, it corrects errors that are not there. Merged into the base as
trained, the result answers as the adapter did. Both are possible, and how far each is from the adapter is measured.

Usage: ``merge("runs/x/adapter", Path("merged"), Settings(onto="trained"))``
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch

from qlmm.artifacts.adapter.base_files import base_file
from qlmm.artifacts.adapter.folder import publish
from qlmm.artifacts.adapter.manifest import MANIFEST, Manifest
from qlmm.artifacts.adapter.preconditions import check_adapter, check_fits
from qlmm.artifacts.adapter.verify import find_adapter
from qlmm.artifacts.destination import check_place, check_room, sources_of, staged
from qlmm.artifacts.merge.base_storage import held_by
from qlmm.artifacts.merge.card import merge_card
from qlmm.artifacts.merge.deltas import Deltas, Way
from qlmm.artifacts.merge.fidelity import MergeError, measure
from qlmm.artifacts.merge.tensor_plan import Sources
from qlmm.artifacts.safetensors_stream import Output, cut, write_shards
from qlmm.core.files import atomic_write
from qlmm.model.image_budget.budget import agree
from qlmm.model.loading.base import Base
from qlmm.model.peft.adapter import ADAPTER_WEIGHTS
from qlmm.proof.probe import PICTURES, PROBE

__all__ = ["Merged", "Settings", "merge"]

Dtype = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[Dtype, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# Files of an adapter that a merged model has no use for; the rest is its processor.
OF_ADAPTER = frozenset({"adapter_config.json", ADAPTER_WEIGHTS, MANIFEST, PROBE, "README.md"})


@dataclass(frozen=True, slots=True)
class Settings:
    """What a merge is asked for.

    Attributes:
        onto: the base to merge into.
        dtype: of the result; None keeps what the base's files have.
        shard_bytes: most bytes in a file; None cuts as the base's files are cut.
        measured: whether base, adapter and result are loaded to measure the difference.
        without: names of the adapter's tensors that stay outside, to be served beside the result.
    """

    onto: Way = "trained"
    dtype: Dtype | None = None
    shard_bytes: int | None = None
    measured: bool = True
    without: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged model.

    Attributes:
        plain: whether it loads without qlmm.
        size_bytes: of its weights.
        error: how far it is from base and adapter; None where that was not measured.
    """

    folder: Path
    plain: bool
    size_bytes: int
    error: MergeError | None


def merge(
    target: str,
    out: Path,
    settings: Settings,
    tell: Callable[[str], None] = lambda line: None,
    *,
    base: Base | None = None,
) -> Merged:
    """Merge an adapter into its base.

    Args:
        target: adapter folder, run directory or Hub id.
        out: the folder to make; it appears when everything is in it.
        settings: what is asked for.
        tell: receives a line about what is going on.
        base: the adapter's base, where it is resolved already.

    Raises:
        UsageError: whatever stands against it; nothing was written by then.
        OSError: when the disk refuses; nothing is left then.
    """
    folder = find_adapter(target)
    manifest = check_adapter(folder)
    check_place(out, sources_of(folder, manifest))
    tell("looking at the base")
    job = _prepare(folder, manifest, base or Base.resolve(manifest.recipe.base), settings)
    size = sum(one.size for one in job.outputs)
    check_room(out, size)
    with staged(out) as stage:
        write_shards(stage, cut(job.outputs, settings.shard_bytes), tell)
        _write_rest(stage, job, settings.dtype)
        error = (
            measure(folder, manifest, job.base, stage, settings.onto, other=job.other, tell=tell)
            if settings.measured
            else None
        )
        card = merge_card(manifest, settings.onto, error, job.sources.merged, plain=job.sources.plain, size=size)
        atomic_write(stage / "README.md", card)
        publish(stage, out.absolute())
    return Merged(out, job.sources.plain, size, error)


@dataclass(frozen=True, slots=True)
class _Job:
    """One merge: what is read and what is written.

    Attributes:
        outputs: the tensors to write.
        other: the merged model's tensors the other way, to be measured beside; None where both ways are the same.
    """

    folder: Path
    manifest: Manifest
    base: Base
    sources: Sources
    outputs: list[Output]
    other: list[Output] | None


def _prepare(folder: Path, manifest: Manifest, base: Base, settings: Settings) -> _Job:
    """Every check that needs the base, and the list of what will be written; no weight is read.

    Raises:
        ModelError: A004, A005, A017, A030, A032 for a base that is not the adapter's, or cannot be merged into.
    """
    check_fits(folder, manifest, base)
    sources = Sources.of(manifest, base)
    held = held_by(manifest, base)
    dtype = DTYPES[settings.dtype] if settings.dtype is not None else None
    trained, original = (Deltas(folder, base.shape.model, one, settings.without) for one in (held, None))
    written, other = (trained, original) if settings.onto == "trained" else (original, trained)
    same = not held.quantised and sources.fit_into(held.dtype)
    beside = None if same else sources.values(other, dtype)
    return _Job(folder, manifest, base, sources, sources.outputs(written, dtype), beside)


def _measured(job: _Job, stage: Path, settings: Settings, tell: Callable[[str], None]) -> MergeError | None:
    if not settings.measured:
        return None
    return measure(job.folder, job.manifest, job.base, stage, settings.onto, other=job.other, tell=tell)


def _write_rest(stage: Path, job: _Job, dtype: Dtype | None) -> None:
    """Processor, chat template, configuration and generation settings."""
    for name in job.manifest.files:
        inside = PurePosixPath(name)
        # Shards lie there already; no manifest can put another file into their place.
        if name in OF_ADAPTER or inside.parts[0] == PICTURES or (stage / name).exists():
            continue
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(job.folder / name, stage / name)
    located, key = job.base.text_place
    settings = base_file(located, "generation_config.json", key)
    if settings is not None:
        shutil.copyfile(settings, stage / "generation_config.json")
    agree(job.sources.model, job.base.saved_processor(job.folder))
    if job.sources.assembled:
        job.sources.merged.config.save_pretrained(stage)
        config = json.loads((stage / "config.json").read_text("utf-8"))
    else:
        stated = base_file(located, "config.json", key)
        config = json.loads(stated.read_text("utf-8")) if stated is not None else {}
        grids = vars(job.sources.model.config).get("image_grid_pinpoints")
        config |= {"image_grid_pinpoints": grids} if "image_grid_pinpoints" in config else {}
    config["architectures"] = [type(job.sources.merged).__name__]
    written = dtype or _dtype_of(job.outputs)
    atomic_write(stage / "config.json", json.dumps(_with_dtype(config, _NAMES[written]), indent=2) + "\n")


def _dtype_of(outputs: list[Output]) -> Dtype:
    """The dtype that most bytes are written in."""
    sizes: Counter[torch.dtype] = Counter()
    for one in outputs:
        sizes[one.dtype] += one.size
    return max(DTYPES, key=lambda name: sizes[DTYPES[name]])


def _with_dtype(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration that says the dtype of its weights, its parts' configurations too."""
    changed = {
        key: _with_dtype(value, name)
        if key.endswith("_config") and isinstance(value, dict) and ("dtype" in value or "torch_dtype" in value)
        else value
        for key, value in config.items()
    }
    changed.pop("torch_dtype", None)
    return changed | {"dtype": name}
