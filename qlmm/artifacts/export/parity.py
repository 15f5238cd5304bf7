"""An export, loaded by transformers and PEFT alone, against the adapter as qlmm loads it: are the logits the same?

The rows are those of the adapter's probe. The adapter is loaded onto the base that the export was made for.

Usage: ``line = compared(job, "the merged model", str(folder), onto="trained", stored="bf16")``
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

import qlmm.model.assembled.model  # noqa: F401  makes assembled checkpoints known to transformers
from qlmm.artifacts.adapter.load import load
from qlmm.artifacts.export.export import Job
from qlmm.artifacts.merge.deltas import AsTrained, Way, requantised
from qlmm.core.errors import RunError
from qlmm.data.encoding.encoder import Encoder
from qlmm.model.image_budget.budget import agree
from qlmm.model.numerics.precision import Precision, again, choose
from qlmm.model.peft.adapter import fill_bare, to_fp32
from qlmm.model.token_losses import last_logits
from qlmm.proof.probe import POSITIONS, check_answers, explained, probe_rows

__all__ = ["compared", "same"]


def compared(
    job: Job, what: str, base: str, adapter: Path | None = None, *, revision: str | None = None, onto: Way, stored: str
) -> str:
    """A line about how far an export's logits are from the adapter's.

    Args:
        job: the export.
        what: what was exported, in words.
        base: folder or Hub id of the exported model.
        adapter: the exported adapter; the processor lies in it, or else in the model's folder.
        revision: commit or branch of a model on the Hub.
        onto: the adapter's base as published, or as the run had it.
        stored: precision that the export's weights were rounded to.

    Raises:
        ModelError: A016 when base and adapter, loaded as the run did, do not give the recorded logits.
        RunError: E005 when the export's differ from the adapter's by more than rounding explains.
    """
    job.tell("comparing answers")
    as_it_was = onto == "trained" or job.manifest.recipe.base.quantize == "none"
    precision = again(job.manifest.precision) if as_it_was else choose("auto", "auto")
    ours = _reference(job, onto, precision)
    gc.collect()
    model: Any = AutoModelForImageTextToText.from_pretrained(
        base, dtype=precision.compute, revision=revision, trust_remote_code=False
    )
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    encoder, _ = job.base.encoder(job.manifest.recipe.data, job.base.saved_processor(adapter or Path(base)))
    theirs = _logits(model.to(precision.device).eval(), encoder, job.folder, precision)
    return same(ours, theirs, what, (stored, precision.name))


def _reference(job: Job, onto: Way, precision: Precision) -> list[Tensor]:
    """The adapter's logits, on the base that the export was made for."""
    folder, manifest, kind = job.folder, job.manifest, job.manifest.recipe.base.quantize
    loaded = load(folder, base=job.base)
    check_answers(folder, loaded.model, loaded.encoder, loaded.precision)
    encoder = loaded.encoder
    if kind == "none" or (onto == "trained" and kind != "int8"):
        return _logits(loaded.model, encoder, folder, precision)
    del loaded
    gc.collect()
    whole = job.base.load(precision, seed=manifest.seed, quantize="none")
    if onto == "trained":
        # Only weights: int8 also rounds what they multiply, which no export can repeat.
        stored = AsTrained.of(manifest, job.base)
        for name in stored.quantised:
            weight = whole.get_parameter(name)
            weight.data = requantised(weight.data, stored.kind, stored.dtype).to(weight.device, weight.dtype)
    model = PeftModel.from_pretrained(whole, str(folder), is_trainable=False)
    to_fp32(model)
    fill_bare(model, folder)
    return _logits(model.eval(), encoder, folder, precision)


@torch.no_grad()
def _logits(model: nn.Module, encoder: Encoder, probe: Path, precision: Precision) -> list[Tensor]:
    """Logits (positions, vocabulary) per row of the probe, in fp32 on the host."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    agree(inner, encoder.processor)
    logits = []
    for row in probe_rows(probe):
        batch = {name: value.to(precision.device) for name, value in encoder.batch([row]).items() if name != "labels"}
        with precision.autocast():
            logits.append(last_logits(model, batch, POSITIONS)[0].float().cpu())
    return logits


def same(ours: Sequence[Tensor], theirs: Sequence[Tensor], what: str, precisions: Iterable[str]) -> str:
    """A line about how far two sides are apart.

    Raises:
        RunError: E005 when it is more than rounding to these precisions explains.
    """
    # Tensors keep a NaN where Python's own max may lose it.
    apart = float(torch.stack([(a - b).abs().max() for a, b in zip(ours, theirs, strict=True)]).max())
    most = explained(float(torch.stack([one.abs().max() for one in ours]).max()), precisions)
    if not apart <= most:
        raise RunError.one(
            "E005",
            f"{what} answers otherwise than the adapter: logits differ by {apart:.3g}, more than {most:.3g}",
            help="nothing was exported; run qlmm verify to see whether the adapter itself is whole",
        )
    return f"{what} gives the adapter's logits on {len(ours)} rows: largest difference {apart:.3g} ({most:.3g})"
