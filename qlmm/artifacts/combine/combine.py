"""Adapters of one base made into one, by arithmetic on their weights.

LoRA is combined by the arithmetic of PEFT's ``add_weighted_adapter``. What PEFT refuses there (modules trained
whole, bare parameters) is combined linearly: base + sum of weight times (trained - base).

Usage: ``combine(["runs/a", "runs/b"], Path("both"), Settings("cat", (0.5, 0.5)))``
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import sqrt
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qlmm.artifacts.adapter.base_files import sources_of
from qlmm.artifacts.adapter.folder import file_hashes
from qlmm.artifacts.adapter.load import load
from qlmm.artifacts.adapter.manifest import Combination, CombinedSource, Manifest, versions, write_manifest
from qlmm.artifacts.adapter.reload import prove_reload
from qlmm.artifacts.combine.card import combine_card
from qlmm.artifacts.combine.checks import (
    NAME,
    Method,
    Source,
    check_same_base,
    check_settings,
    read_sources,
    resolve_base,
)
from qlmm.artifacts.combine.heldout import losses, rows_to_compare
from qlmm.compat.peft_private import ties
from qlmm.core.errors import RunError
from qlmm.core.filenames import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, PICTURES, PROBE
from qlmm.core.files import atomic_write
from qlmm.core.staging import check_place, check_room, publish, staged
from qlmm.data.fingerprint import DataFingerprint
from qlmm.model.loading.base import Base
from qlmm.model.numerics.precision import again
from qlmm.model.parts.split import PEFT_PREFIX
from qlmm.proof.probe import probe_rows, write_probe
from qlmm.recipe.schema import AdapterSection

__all__ = ["Combined", "Settings", "combine"]

Tell = Callable[[str], None]
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Settings:
    """How adapters are combined.

    Attributes:
        method: PEFT's name for it.
        weights: one per adapter; LoRA and modules trained whole are scaled alike.
        density: share of values that ties keeps.
        rows: a file of rows to measure on; unset: those that the runs held out.
        image_root: where the pictures of these rows are.
    """

    method: Method
    weights: tuple[float, ...]
    density: float = 0.5
    rows: Path | None = None
    image_root: Path | None = None


@dataclass(frozen=True, slots=True)
class Combined:
    """A combined adapter: its folder, the rank of its LoRA, and what was recorded of it."""

    folder: Path
    rank: int
    facts: Combination


def combine(targets: Sequence[str], out: Path, settings: Settings, tell: Tell = lambda line: None) -> Combined:
    """Combine adapters of one base, in a new folder that appears when everything is in it.

    Targets are adapter folders, run directories, Hub ids or ``zoo:NAME``; `tell` receives lines of progress.

    Raises:
        UsageError: A033, A034, K001 to K008 for adapters that cannot be combined so; nothing was written.
        RunError: K010 when the result cannot be read back.
    """
    check_settings(len(targets), settings.method, settings.weights, settings.density)
    sources = read_sources(targets)
    check_place(out, [place for source in sources for place in sources_of(source.folder, source.manifest)])
    base = resolve_base(sources)
    check_same_base(sources, settings.method)
    check_room(out, sum((source.folder / ADAPTER_WEIGHTS).stat().st_size for source in sources))
    chosen = rows_to_compare(sources, base, settings.rows, settings.image_root)
    with staged(out) as stage:
        tensors = _combined(sources, base, settings, tell)
        ranks = (len(factor) for name, factor in tensors.items() if ".lora_A." in name)
        rank = next(ranks, sources[0].manifest.recipe.adapter.r)
        manifest = _manifest(sources, rank)
        _write_adapter(stage, sources, tensors, manifest)
        _write_probe(stage, sources, base, manifest, tell)
        facts = Combination(
            method=settings.method,
            weights=settings.weights,
            density=settings.density if settings.method == "ties" else None,
            sources=tuple(_recorded(source) for source in sources),
            measured_on=chosen.words,
            reload=_read_back(stage, manifest, tell),
        )
        if chosen.samples:
            tell("measuring each adapter and what was made of them")
            found = losses([*(source.folder for source in sources), stage], base, chosen.samples)
            names = [*(source.name for source in sources), NAME]
            facts = facts.model_copy(update={"losses": dict(zip(names, found, strict=True))})
        final = _write_manifest(stage, manifest.model_copy(update={"combined": facts}))
        atomic_write(stage / CARD, combine_card(final.shared()))
        publish(stage, out.absolute())
    return Combined(out, rank, facts)


def _combined(sources: Sequence[Source], base: Base, settings: Settings, tell: Tell) -> Tensors:
    """The weights of the result."""
    first, tensors = sources[0].manifest, [load_file(source.folder / ADAPTER_WEIGHTS) for source in sources]
    whole = [name for name in tensors[0] if ".lora_" not in name]
    if whole:
        tell("loading the base")
    # The weights before training of modules that adapters have whole.
    state = base.load(again(first.precision), seed=first.seed).state_dict() if whole else {}
    start = {name: state[name.removeprefix(PEFT_PREFIX)].detach().cpu() for name in whole}
    del state
    tell("combining")
    # ties divides by how many adapters there are: modules trained whole are scaled as LoRA is.
    count = len(sources) if settings.method == "ties" else 1
    shares = [weight / count for weight in settings.weights]
    made = {name: _linear(start[name], [one[name] for one in tensors], shares) for name in whole}
    scales = [_scale(source.manifest.recipe.adapter) for source in sources]
    lora = [name for name in tensors[0] if ".lora_" in name]
    return made | {name: _factor(name, [one[name].float() for one in tensors], scales, settings) for name in lora}


def _linear(base: Tensor, trained: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The base plus shares of what was trained; shares that add up to 1 leave the base out, to the last bit."""
    if not base.is_floating_point():
        return trained[0]
    rest = 1.0 - sum(shares)
    terms = [one.double() * share for one, share in zip(trained, shares, strict=True)]
    total = torch.stack(terms).sum(0) + (base.double() * rest if abs(rest) > 1e-9 else 0.0)
    return total.to(trained[0].dtype).contiguous()


def _scale(section: AdapterSection) -> float:
    """What PEFT multiplies a layer's update by."""
    return section.alpha / (sqrt(section.r) if section.variant == "rslora" else section.r)


def _factor(name: str, factors: Sequence[Tensor], scales: Sequence[float], settings: Settings) -> Tensor:
    """One of LoRA's two factors, as PEFT's ``add_weighted_adapter`` makes it, with the scaling in it.

    PEFT gives both factors the root of a weight. Where factors are added up, the weight itself makes halves of an
    adapter and of the same adapter that adapter. Where they are averaged, roots give their product the weight.
    """
    weighted = list(zip(settings.weights, scales, strict=True))
    if settings.method == "ties":
        roots = torch.tensor([sqrt(weight * scale) for weight, scale in weighted])
        elected: Tensor = ties(list(factors), roots, settings.density)
        return elected.contiguous()
    if settings.method == "linear":
        terms = [weight * sqrt(scale) * one for (weight, scale), one in zip(weighted, factors, strict=True)]
        return torch.stack(terms).sum(0)
    if ".lora_B." in name:
        return torch.cat(list(factors), dim=1).contiguous()
    return torch.cat([weight * scale * one for (weight, scale), one in zip(weighted, factors, strict=True)])


def _manifest(sources: Sequence[Source], rank: int) -> Manifest:
    """The first adapter's manifest, with what is different for the result; its files are still to come."""
    first = sources[0].manifest
    adapter = first.recipe.adapter.model_copy(update={"r": rank, "alpha": rank, "variant": "plain"})
    prints = "\n".join(source.manifest.data.sha256 for source in sources)
    rows = {row.path: row for source in sources for row in source.manifest.data.sources}
    changes = {
        "recipe": first.recipe.model_copy(update={"adapter": adapter}),
        "data": DataFingerprint(sha256(prints.encode()).hexdigest(), tuple(rows.values())),
        "steps": sum(source.manifest.steps for source in sources),
        "versions": versions(),
        "proof": None,
        "combined": None,
    }
    return first.model_copy(update=changes)


def _recorded(source: Source) -> CombinedSource:
    return CombinedSource(
        name=source.name,
        weights_sha256=source.manifest.files[ADAPTER_WEIGHTS],
        steps=source.manifest.steps,
        data=tuple(row.path for row in source.manifest.data.sources),
    )


def _write_adapter(stage: Path, sources: Sequence[Source], tensors: Mapping[str, Tensor], manifest: Manifest) -> None:
    """Weights, PEFT's configuration, the processor, and a manifest."""
    first, rank = sources[0], manifest.recipe.adapter.r
    save_file(dict(tensors), stage / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = json.loads((first.folder / ADAPTER_CONFIG).read_text("utf-8"))
    # The factors contain the scaling already.
    config |= {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    atomic_write(stage / ADAPTER_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    for name in first.manifest.files:
        if name not in (ADAPTER_WEIGHTS, ADAPTER_CONFIG, PROBE) and not name.startswith(f"{PICTURES}/"):
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(first.folder / name, stage / name)
    _write_manifest(stage, manifest)


def _write_probe(stage: Path, sources: Sequence[Source], base: Base, manifest: Manifest, tell: Tell) -> None:
    """Record the combined adapter's answers to the rows of its sources' probes."""
    tell("asking the combined adapter")
    loaded = load(stage, precision=again(manifest.precision), base=base)
    rows = [row for source in sources for row in probe_rows(source.folder)]
    write_probe(stage, loaded.model, loaded.encoder, loaded.precision, rows)
    _write_manifest(stage, manifest)
    del loaded
    gc.collect()


def _write_manifest(stage: Path, manifest: Manifest) -> Manifest:
    """Write the manifest with the hashes of the files that are there."""
    whole = manifest.model_copy(update={"files": file_hashes(stage)})
    write_manifest(stage, whole)
    return whole


def _read_back(stage: Path, manifest: Manifest, tell: Tell) -> float:
    """The largest difference of logits in a fresh process."""
    tell("reading it back in a fresh process")
    proof = prove_reload(stage, again(manifest.precision))
    if not proof.same:
        message = f"read back, the combined adapter's logits differ by {proof.max_difference:.3g}"
        help = "nothing was written; check the adapters that it was made of with qlmm verify"
        raise RunError.one("K010", message, help=help)
    return proof.max_difference
