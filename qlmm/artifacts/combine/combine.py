"""Adapters of one base made into one, by arithmetic on their weights.

LoRA is combined by the arithmetic of PEFT's ``add_weighted_adapter``. What PEFT refuses there (modules trained
whole, bare parameters) is combined linearly: base + sum of weight times (trained - base).

Usage: ``combine([Path("runs/a/adapter"), Path("runs/b/adapter")], Path("both"), Settings("cat", (0.5, 0.5)))``
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
    size_of,
)
from qlmm.compat.peft_private import ties
from qlmm.core.errors import RunError
from qlmm.core.filenames import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, PICTURES, PROBE
from qlmm.core.files import atomic_write
from qlmm.core.staging import check_place, check_room, publish, staged
from qlmm.data.fingerprint import DataFingerprint
from qlmm.model.loading.base import Base
from qlmm.model.numerics.precision import Precision, choose
from qlmm.model.parts.split import PEFT_PREFIX
from qlmm.proof.probe import probe_rows, write_probe
from qlmm.proof.records import ReloadProof
from qlmm.recipe.schema import AdapterSection

__all__ = ["Combined", "Measure", "Settings", "combine"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How adapters are combined.

    Attributes:
        method: PEFT's name for it.
        weights: one per adapter; LoRA and modules trained whole are scaled alike.
        density: share of values that ties keeps.
    """

    method: Method
    weights: tuple[float, ...]
    density: float = 0.5


@dataclass(frozen=True, slots=True)
class Measure:
    """How adapters are measured.

    Attributes:
        rows: on which rows, or why on none, in words without paths.
        losses: gives the held-out loss of adapter folders; None where there is nothing to measure on.
    """

    rows: str
    losses: Callable[[Sequence[Path]], Sequence[float]] | None


@dataclass(frozen=True, slots=True)
class Combined:
    """A combined adapter.

    Attributes:
        proof: how a fresh process found it.
        losses: held-out loss in nats per token, by the sources' names and ``combined``; empty where not measured.
        rows: on which rows, or why on none.
    """

    folder: Path
    rank: int
    proof: ReloadProof
    losses: Mapping[str, float]
    rows: str


def combine(
    targets: Sequence[str],
    out: Path,
    settings: Settings,
    *,
    measuring: Callable[[Sequence[Source], Base], Measure] = lambda sources, base: Measure("not measured", None),
    tell: Callable[[str], None] = lambda line: None,
) -> Combined:
    """Combine adapters of one base.

    Args:
        targets: adapter folders, run directories, Hub ids or ``zoo:NAME``.
        out: the folder to make; it appears when everything is in it.
        settings: how.
        measuring: chooses what the sources and the result are measured on; asked before the base is loaded.
        tell: receives a line about what is going on.

    Raises:
        UsageError: A033, A034, K001 to K008 for adapters that cannot be combined so; nothing was written by then.
        RunError: K010 when the result cannot be read back.
    """
    check_settings(targets, out, settings.method, settings.weights, settings.density)
    sources = read_sources(targets)
    base = resolve_base(sources)
    check_same_base(sources, settings.method)
    check_place(out, [place for source in sources for place in sources_of(source.folder, source.manifest)])
    check_room(out, size_of(sources, settings.method))
    measure = measuring(sources, base)
    with staged(out) as stage:
        rank = _write_weights(stage, sources, base, settings, tell)
        manifest = _manifest(sources, settings, rank)
        _write_rest(stage, sources, base, manifest, tell)
        proof = _proven(stage, manifest, tell)
        losses = _losses(stage, sources, measure, tell)
        _finish(stage, manifest, proof, losses, measure.rows)
        publish(stage, out.absolute())
    return Combined(out, rank, proof, losses, measure.rows)


def _write_weights(
    stage: Path, sources: Sequence[Source], base: Base, settings: Settings, tell: Callable[[str], None]
) -> int:
    """Weights and PEFT's configuration; the rank of the result."""
    tensors = [load_file(source.folder / ADAPTER_WEIGHTS) for source in sources]
    whole = [name for name in tensors[0] if ".lora_" not in name]
    start = _before_training(base, sources[0].manifest, whole, tell) if whole else {}
    tell("combining")
    combined = {name: _linear(start[name], [held[name] for held in tensors], _shares(settings)) for name in whole}
    scales = [_scale(source.manifest.recipe.adapter) for source in sources]
    lora = {
        name: _factor(name, [held[name].float() for held in tensors], scales, settings)
        for name in tensors[0]
        if ".lora_" in name
    }
    save_file({**combined, **lora}, stage / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    ranks = (len(factor) for name, factor in lora.items() if ".lora_A." in name)
    rank = next(ranks, sources[0].manifest.recipe.adapter.r)
    config = json.loads((sources[0].folder / ADAPTER_CONFIG).read_text("utf-8"))
    # The factors hold the scaling already.
    config |= {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    atomic_write(stage / ADAPTER_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return rank


def _before_training(
    base: Base, manifest: Manifest, names: Sequence[str], tell: Callable[[str], None]
) -> dict[str, Tensor]:
    """What modules that adapters hold whole were before training."""
    tell("loading the base")
    state = base.load(_precision(manifest), seed=manifest.seed).state_dict()
    return {name: state[name.removeprefix(PEFT_PREFIX)].detach().cpu() for name in names}


def _precision(manifest: Manifest) -> Precision:
    """As the run computed, where this machine can."""
    best = choose("auto", "auto")
    return best if manifest.precision == "fp16" and best.device == "cpu" else Precision(best.device, manifest.precision)


def _shares(settings: Settings) -> tuple[float, ...]:
    """The weights that whole modules get, which scale them as the method scales LoRA.

    ``ties`` divides by how many adapters there are.
    """
    count = len(settings.weights) if settings.method == "ties" else 1
    return tuple(weight / count for weight in settings.weights)


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


def _manifest(sources: Sequence[Source], settings: Settings, rank: int) -> Manifest:
    """The first adapter's manifest, with what is different now; the files are still to come."""
    first = sources[0].manifest
    changes = {"r": rank, "alpha": rank, "variant": "plain"}
    recipe = first.recipe.model_copy(update={"adapter": first.recipe.adapter.model_copy(update=changes)})
    prints = [source.manifest.data.sha256 for source in sources]
    rows = {row.path: row for source in sources for row in source.manifest.data.sources}
    combined = Combination(
        method=settings.method,
        weights=settings.weights,
        density=settings.density if settings.method == "ties" else None,
        sources=tuple(_recorded(source) for source in sources),
    )
    return Manifest(
        base=first.base,
        recipe=recipe,
        precision=first.precision,
        seed=first.seed,
        frozen_sha256=first.frozen_sha256,
        data=DataFingerprint(sha256("\n".join(prints).encode()).hexdigest(), tuple(rows.values())),
        steps=sum(source.manifest.steps for source in sources),
        versions=versions(),
        files={},
        combined=combined,
    )


def _recorded(source: Source) -> CombinedSource:
    return CombinedSource(
        name=source.name,
        weights_sha256=source.manifest.files[ADAPTER_WEIGHTS],
        steps=source.manifest.steps,
        data=tuple(row.path for row in source.manifest.data.sources),
    )


def _write_rest(
    stage: Path, sources: Sequence[Source], base: Base, manifest: Manifest, tell: Callable[[str], None]
) -> None:
    """Processor, and what the combined adapter says to the rows of its sources' probes."""
    first = sources[0]
    for name in first.manifest.files:
        if name not in (ADAPTER_WEIGHTS, ADAPTER_CONFIG, PROBE) and not name.startswith(f"{PICTURES}/"):
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(first.folder / name, stage / name)
    write_manifest(stage, _with_files(stage, manifest))
    tell("asking the combined adapter")
    loaded = load(stage, precision=_precision(manifest), base=base)
    rows = [row for source in sources for row in probe_rows(source.folder)]
    write_probe(stage, loaded.model, loaded.encoder, loaded.precision, rows)
    write_manifest(stage, _with_files(stage, manifest))
    del loaded
    gc.collect()


def _with_files(stage: Path, manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"files": file_hashes(stage)})


def _proven(stage: Path, manifest: Manifest, tell: Callable[[str], None]) -> ReloadProof:
    tell("reading it back in a fresh process")
    proof = prove_reload(stage, _precision(manifest))
    if not proof.same:
        raise RunError.one(
            "K010",
            f"read back, the combined adapter's logits differ by {proof.max_difference:.3g}",
            help="nothing was written; qlmm verify says whether the adapters it was made of are whole",
        )
    return proof


def _losses(stage: Path, sources: Sequence[Source], measure: Measure, tell: Callable[[str], None]) -> dict[str, float]:
    if measure.losses is None:
        return {}
    tell("measuring each adapter and what was made of them")
    found = measure.losses([*(source.folder for source in sources), stage])
    return dict(zip([*(source.name for source in sources), NAME], found, strict=True))


def _finish(stage: Path, manifest: Manifest, proof: ReloadProof, losses: Mapping[str, float], rows: str) -> None:
    """Record what was measured, in manifest and card."""
    measured = {"losses": dict(losses), "measured_on": rows, "reload": proof.max_difference}
    combined = manifest.combined.model_copy(update=measured) if manifest.combined is not None else None
    final = _with_files(stage, manifest.model_copy(update={"combined": combined}))
    write_manifest(stage, final)
    atomic_write(stage / CARD, combine_card(final.shared()))
