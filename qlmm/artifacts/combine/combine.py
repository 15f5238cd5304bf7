"""Adapters of one base made into one, by arithmetic on their weights.

LoRA is combined by PEFT's ``add_weighted_adapter``; what PEFT refuses there, modules trained whole and bare parameters,
is combined linearly: base + sum of weight times (trained - base). The result is an adapter folder like any other.

Usage: ``combine([Path("runs/a/adapter"), Path("runs/b/adapter")], Path("both"), Settings("cat", (0.5, 0.5)))``
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from qlmm.artifacts.adapter.folder import file_hashes, publish
from qlmm.artifacts.adapter.load import load
from qlmm.artifacts.adapter.manifest import MANIFEST, Manifest, versions, write_manifest
from qlmm.artifacts.adapter.reload import prove_reload
from qlmm.artifacts.combine.card import combine_card
from qlmm.artifacts.combine.checks import (
    AVERAGING,
    NAME,
    OF_FACTORS,
    Source,
    check_same_base,
    check_settings,
    read_sources,
    resolve_base,
    size_of,
)
from qlmm.artifacts.destination import check_place, check_room, sources_of, staged
from qlmm.core.errors import RunError
from qlmm.core.files import atomic_write
from qlmm.model.loading.base import Base
from qlmm.model.numerics.precision import Precision, choose
from qlmm.model.peft.adapter import ADAPTER_WEIGHTS, PEFT_PREFIX
from qlmm.proof.probe import PICTURES, PROBE, probe_rows, write_probe
from qlmm.proof.records import ReloadProof

__all__ = ["Combined", "Measure", "Method", "Settings", "combine"]

Method = Literal["linear", "cat", "ties", "dare_ties", "dare_linear", "svd"]
CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """How adapters are combined.

    Attributes:
        method: PEFT's name for it.
        weights: one per adapter; LoRA and modules trained whole are scaled alike.
        density: share of values that ties and dare keep.
        seed: decides which ones dare keeps.
    """

    method: Method
    weights: tuple[float, ...]
    density: float = 0.5
    seed: int = 0


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
        tell("loading the base")
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
    first = sources[0].manifest
    model = base.load(_precision(first), seed=first.seed)
    tensors = [load_file(source.folder / ADAPTER_WEIGHTS) for source in sources]
    whole = [name for name in tensors[0] if ".lora_" not in name]
    shares = _shares(settings)
    start = {name: model.state_dict()[name.removeprefix(PEFT_PREFIX)].detach().cpu() for name in whole}
    combined = {name: _linear(start[name], [held[name] for held in tensors], shares) for name in whole}
    tell("combining")
    lora, rank = _lora(model, sources, tensors, settings)
    save_file({**combined, **lora}, stage / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = json.loads((sources[0].folder / CONFIG).read_text("utf-8"))
    config |= {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    atomic_write(stage / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    del model
    gc.collect()
    return rank


def _precision(manifest: Manifest) -> Precision:
    """As the run computed, where this machine can."""
    best = choose("auto", "auto")
    return best if manifest.precision == "fp16" and best.device == "cpu" else Precision(best.device, manifest.precision)


def _shares(settings: Settings) -> tuple[float, ...]:
    """The weights that whole modules get, which scale them as the method scales LoRA.

    An averaging method divides by how many adapters there are.
    """
    count = len(settings.weights) if settings.method in AVERAGING else 1
    return tuple(weight / count for weight in settings.weights)


def _linear(base: Tensor, trained: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The base plus shares of what was trained; shares that add up to 1 leave the base out, to the last bit."""
    if not base.is_floating_point():
        return trained[0]
    rest = 1.0 - sum(shares)
    terms = [one.double() * share for one, share in zip(trained, shares, strict=True)]
    total = torch.stack(terms).sum(0) + (base.double() * rest if abs(rest) > 1e-9 else 0.0)
    return total.to(trained[0].dtype).contiguous()


def _lora(
    model: PreTrainedModel, sources: Sequence[Source], tensors: Sequence[Mapping[str, Tensor]], settings: Settings
) -> tuple[dict[str, Tensor], int]:
    """LoRA weights by PEFT, and their rank; adapters without LoRA keep the rank of the first."""
    held = [{name: value for name, value in one.items() if ".lora_" in name} for one in tensors]
    if not held[0]:
        return {}, sources[0].manifest.recipe.adapter.r
    names = [f"source{number}" for number in range(len(sources))]
    wrapped: Any = None
    for name, source, weights in zip(names, sources, held, strict=True):
        config: Any = LoraConfig.from_pretrained(str(source.folder))
        config.modules_to_save, config.inference_mode = None, False
        if wrapped is None:
            wrapped = get_peft_model(model, config, adapter_name=name)
        else:
            wrapped.add_adapter(name, config)
        set_peft_model_state_dict(wrapped, dict(weights), adapter_name=name)
        # PEFT copies this from the first adapter to the result, whose weights hold the scaling already.
        wrapped.peft_config[name].use_rslora = False
    _add(wrapped, names, settings)
    state = get_peft_model_state_dict(wrapped, adapter_name=NAME, save_embedding_layers=False)
    rank = int(wrapped.peft_config[NAME].r)
    return {name: value.detach().float().cpu().contiguous() for name, value in state.items()}, rank


def _add(wrapped: PeftModel, names: list[str], settings: Settings) -> None:
    """PEFT's combination.

    PEFT gives both factors the root of a weight. Where factors are added up, squared weights make that the weight
    itself, so that halves of an adapter and of the same adapter give that adapter. Where they are averaged, equal
    weights give their product that weight.
    """
    weights = list(settings.weights)
    if settings.method in OF_FACTORS:
        weights = [weight**2 for weight in weights]
    torch.manual_seed(settings.seed)
    wrapped.base_model.add_weighted_adapter(
        names,
        weights,
        NAME,
        combination_type=settings.method,
        density=settings.density if "ties" in settings.method or "dare" in settings.method else None,
        svd_full_matrices=False,
    )


def _manifest(sources: Sequence[Source], settings: Settings, rank: int) -> Manifest:
    """The first adapter's manifest, with what is different now; the files are still to come."""
    first = sources[0].manifest
    changes = {"r": rank, "alpha": rank, "variant": "plain"}
    recipe = first.recipe.model_copy(update={"adapter": first.recipe.adapter.model_copy(update=changes)})
    prints = [source.manifest.data["sha256"] for source in sources]
    rows = {str(row["path"]): row for source in sources for row in source.manifest.data["sources"]}
    data = {"sha256": hashlib.sha256("\n".join(prints).encode()).hexdigest(), "sources": list(rows.values())}
    told = [
        {
            "name": source.name,
            "weights_sha256": source.manifest.files[ADAPTER_WEIGHTS],
            "steps": source.manifest.steps,
            "data": [str(row["path"]) for row in source.manifest.data["sources"]],
        }
        for source in sources
    ]
    combined: dict[str, Any] = {"method": settings.method, "weights": list(settings.weights), "sources": told}
    if settings.method not in ("linear", "cat", "svd"):
        combined |= {"density": settings.density, "seed": settings.seed}
    steps = sum(source.manifest.steps for source in sources)
    changed: dict[str, Any] = {"recipe": recipe, "data": data, "steps": steps, "proof": None, "combined": combined}
    return first.model_copy(update=changed | {"versions": versions(), "files": {}})


def _write_rest(
    stage: Path, sources: Sequence[Source], base: Base, manifest: Manifest, tell: Callable[[str], None]
) -> None:
    """Processor, and what the combined adapter says to the rows of its sources' probes."""
    first = sources[0]
    for name in first.manifest.files:
        if name not in (ADAPTER_WEIGHTS, CONFIG, PROBE) and not name.startswith(f"{PICTURES}/"):
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
    files = file_hashes(stage, without=frozenset({MANIFEST, "README.md"}))
    return manifest.model_copy(update={"files": files})


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
    told = {"losses": dict(losses), "measured_on": rows, "reload": proof.max_difference}
    final = _with_files(stage, manifest.model_copy(update={"combined": {**(manifest.combined or {}), **told}}))
    write_manifest(stage, final)
    atomic_write(stage / "README.md", combine_card(final))
