"""An adapter merged into its base, shard by shard: an ordinary checkpoint of any size.

There are two bases to merge into. The original is what the model's authors published. But LoRA was fitted to the base
as the run stored it, quantised and rounded: added to the original, it corrects errors that are not there. Merged into
the base as trained, the result answers as the adapter did. How far each is from the adapter is measured.

Usage: ``merge("runs/x/adapter", Path("merged"), Settings(onto="trained"))``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from qlmm.artifacts.adapter.base_files import sources_of
from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.adapter.verify import check_adapter, check_fits
from qlmm.artifacts.merge.card import merge_card
from qlmm.artifacts.merge.config_files import write_config_files
from qlmm.artifacts.merge.deltas import AsTrained, Deltas, Way
from qlmm.artifacts.merge.fidelity import MergeError, measure
from qlmm.artifacts.merge.tensor_plan import Sources, is_plain, sources_of_merge
from qlmm.artifacts.safetensors_stream import Output, cut, write_shards
from qlmm.artifacts.zoo.find import find_adapter
from qlmm.core.filenames import CARD
from qlmm.core.files import atomic_write
from qlmm.core.staging import check_place, check_room, publish, staged
from qlmm.model.loading.base import Base

__all__ = ["DTYPES", "MergePlan", "Merged", "Settings", "merge", "plan_merge", "write_card", "write_checkpoint"]

Dtype = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[Dtype, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of a merge.

    Attributes:
        onto: the base to merge into.
        dtype: of the result; None keeps that of the base's files.
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


def merge(target: str, out: Path, settings: Settings, tell: Tell = lambda line: None) -> Merged:
    """Merge an adapter into its base, in a new folder that appears when everything is in it.

    The target is an adapter folder, a run directory, a Hub id or ``zoo:NAME``; `tell` receives lines of progress.

    Raises:
        UsageError: why it cannot be merged; nothing was written.
        OSError: when the disk refuses; nothing is left.
    """
    folder = find_adapter(target)
    manifest = check_adapter(folder)
    check_place(out, sources_of(folder, manifest))
    tell("looking at the base")
    base = Base.resolve(manifest.recipe.base)
    check_fits(folder, manifest, base)
    plan = plan_merge(folder, manifest, base, settings)
    check_room(out, plan.size)
    with staged(out) as stage:
        write_checkpoint(plan, stage, tell)
        error = None
        if settings.measured:
            error = measure(folder, manifest, base, stage, settings.onto, other=plan.other, tell=tell)
        write_card(plan, stage, error)
        publish(stage, out.absolute())
    return Merged(out, is_plain(plan.sources.merged), plan.size, error)


@dataclass(frozen=True, slots=True)
class MergePlan:
    """A merge before a weight is read.

    Attributes:
        outputs: the tensors to write.
        other: the merged model's tensors the other way, to be measured beside; None where both ways are the same.
    """

    folder: Path
    manifest: Manifest
    base: Base
    settings: Settings
    sources: Sources
    outputs: list[Output]
    other: list[Output] | None

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(one.size for one in self.outputs)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that most bytes are written in."""
        if self.settings.dtype is not None:
            return DTYPES[self.settings.dtype]
        sizes: Counter[torch.dtype] = Counter()
        for one in self.outputs:
            sizes[one.dtype] += one.size
        return max(DTYPES.values(), key=lambda dtype: sizes[dtype])


def plan_merge(folder: Path, manifest: Manifest, base: Base, settings: Settings) -> MergePlan:
    """List what will be written, from the headers of the base's files.

    Raises:
        ModelError: A020 to A030 for a base whose files cannot be merged into, M003 and following for files that cannot
            be had.
    """
    sources, stored = sources_of_merge(manifest, base), AsTrained.of(manifest, base)
    trained, original = (Deltas(folder, base.shape.model, one, settings.without) for one in (stored, None))
    chosen, other = (trained, original) if settings.onto == "trained" else (original, trained)
    dtype = DTYPES[settings.dtype] if settings.dtype is not None else None
    outputs = sources.outputs(chosen, dtype)
    same = not stored.quantised and sources.fit_into(stored.dtype)
    rest = sources.values(other, dtype) if settings.measured and not same else None
    return MergePlan(folder, manifest, base, settings, sources, outputs, rest)


def write_checkpoint(plan: MergePlan, stage: Path, tell: Tell) -> None:
    """Write weights, processor and configuration into an empty folder; raises A021, A023 for infinite weights."""
    write_shards(stage, cut(plan.outputs, plan.settings.shard_bytes), tell)
    write_config_files(stage, plan.folder, plan.manifest, plan.base, plan.sources, dtype=plan.dtype)


def write_card(plan: MergePlan, stage: Path, error: MergeError | None) -> None:
    """Write the README of a merged model, with what was measured of it."""
    card = merge_card(plan.manifest, plan.settings.onto, error, plan.sources.merged, size=plan.size)
    atomic_write(stage / CARD, card)
