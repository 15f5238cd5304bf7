"""One question, two ways to load a model: are the answers the same?

The rows are those of the adapter's probe. The reference is the adapter as qlmm loads it, on the base an export was made
for; the other side is loaded as a stranger would, by transformers and PEFT alone.

Usage: ``line = same(reference(job, onto="original"), by_transformers(…), "base + adapter")``
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel

import qlmm.model.assembled.model  # noqa: F401  makes assembled checkpoints known to transformers
from qlmm.artifacts.adapter.load import load
from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.export.export import Job
from qlmm.artifacts.merge.base_storage import held_by
from qlmm.artifacts.merge.deltas import Way, requantised
from qlmm.core.errors import RunError
from qlmm.data.encoding.encoder import Encoder
from qlmm.model.image_budget.budget import agree
from qlmm.model.loading.base import Base
from qlmm.model.numerics.precision import Precision, again, choose
from qlmm.model.peft.adapter import fill_bare, to_fp32
from qlmm.model.token_losses import last_logits
from qlmm.proof.probe import POSITIONS, check_answers, explained, probe_rows

__all__ = ["Said", "by_transformers", "reference", "same"]

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True, slots=True)
class Said:
    """Logits (positions, vocabulary) per row of the probe, and the precision they were computed in."""

    logits: tuple[Tensor, ...]
    stored: str


def reference(job: Job, *, onto: Way) -> Said:
    """What the adapter says on its base, as published (`original`) or as the run held it (`trained`).

    Args:
        job: the export.
        onto: as published, or as the run held it.

    Raises:
        ModelError: A016 when base and adapter, loaded as the run did, do not say what was recorded.
    """
    folder, manifest, base = job.folder, job.manifest, job.base
    loaded, kind = load(folder, base=base), manifest.recipe.base.quantize
    check_answers(folder, loaded.model, loaded.encoder, loaded.precision)
    if kind == "none" or (onto == "trained" and kind != "int8"):
        return _said(loaded.model, loaded.encoder, folder, loaded.precision)
    encoder = loaded.encoder
    del loaded
    gc.collect()
    precision = _precision(manifest, onto)
    whole = base.load(precision, seed=manifest.seed, quantize="none")
    if onto == "trained":
        _round(whole, manifest, base)
    model = PeftModel.from_pretrained(whole, str(folder), is_trainable=False)
    to_fp32(model)
    fill_bare(model, folder)
    return _said(model.eval(), encoder, folder, precision)


def _round(model: PreTrainedModel, manifest: Manifest, base: Base) -> None:
    """Give layers the weights that int8 leaves; what they multiply is rounded too, which no export can repeat."""
    held = held_by(manifest, base)
    for name in held.quantised:
        weight = model.get_parameter(name)
        weight.data = requantised(weight.data, held.kind, held.dtype).to(weight.device, weight.dtype)


def by_transformers(
    base: str, adapter: Path | None, job: Job, *, processor: Path, onto: Way, revision: str | None = None
) -> Said:
    """What a folder says that transformers, and PEFT where there is an adapter, load without qlmm.

    Args:
        base: folder or Hub id of the model.
        adapter: an adapter for it.
        job: the export, for the rows of the probe and how they are encoded.
        processor: the folder with the processor.
        onto: decides the precision, as for the reference.
        revision: commit or branch of a model on the Hub.
    """
    precision = _precision(job.manifest, onto)
    model: Any = AutoModelForImageTextToText.from_pretrained(
        base, dtype=precision.compute, revision=revision, trust_remote_code=False
    )
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    encoder, _ = job.base.encoder(job.manifest.recipe.data, job.base.saved_processor(processor))
    return _said(model.to(precision.device).eval(), encoder, job.folder, precision)


def same(ours: Said, theirs: Said, what: str, *, stored: str) -> str:
    """Hold two sides against each other.

    Args:
        ours: the reference.
        theirs: the export.
        what: what was exported, in words.
        stored: dtype that the export's weights were rounded to.

    Returns:
        A line about how far they are apart.

    Raises:
        RunError: E005 when they differ by more than rounding explains.
    """
    # Tensors keep a NaN where Python's own max may lose it.
    apart = float(torch.stack([(a - b).abs().max() for a, b in zip(ours.logits, theirs.logits, strict=True)]).max())
    peak = float(torch.stack([one.abs().max() for one in ours.logits]).max())
    most = explained(peak, (stored, ours.stored, theirs.stored))
    if not apart <= most:
        raise RunError.one(
            "E005",
            f"{what} answers otherwise than the adapter: logits differ by {apart:.3g}, more than {most:.3g}",
            help="nothing was exported; qlmm verify says whether the adapter itself is whole",
        )
    return f"{what} gives the adapter's logits on {len(ours.logits)} rows: largest difference {apart:.3g} ({most:.3g})"


def _precision(manifest: Manifest, onto: Way) -> Precision:
    """The run's own where the base is as it had it, else this machine's best."""
    as_it_was = onto == "trained" or manifest.recipe.base.quantize == "none"
    return again(manifest.precision) if as_it_was else choose("auto", "auto")


@torch.no_grad()
def _said(model: nn.Module, encoder: Encoder, probe: Path, precision: Precision) -> Said:
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    agree(inner, encoder.processor)
    logits = []
    for row in probe_rows(probe):
        batch = {name: value.to(precision.device) for name, value in encoder.batch([row]).items() if name != "labels"}
        with precision.autocast():
            logits.append(last_logits(model, batch, POSITIONS)[0].float().cpu())
    gc.collect()
    return Said(tuple(logits), NAMES[precision.compute])
