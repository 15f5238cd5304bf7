"""Merging, tried on any plan: a random adapter, merged shard by shard, against the model it was merged from.

Usage: ``assert merged_equals(plan, folder) <= TOLERANCE``
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from qlmm.artifacts.adapter.folder import file_hashes, stage_adapter
from qlmm.artifacts.adapter.manifest import Manifest, versions, write_manifest
from qlmm.artifacts.merge.merge import Settings, merge
from qlmm.training.plan import Plan
from qlmm.training.run import build

__all__ = ["TOLERANCE", "adapter_of", "merged_equals", "shaken"]

TOLERANCE = 1e-4
STEP = 0.05


def merged_equals(plan: Plan, folder: Path, settings: Settings | None = None) -> float:
    """The largest absolute difference of logits between a merged model and base + adapter.

    Args:
        plan: of a run on an unquantised base, in fp32.
        folder: an empty folder for the adapter and the merged model.
        settings: of the merge; nothing is measured unless it says so.
    """
    model = shaken(plan)
    adapter = adapter_of(plan, model, folder)
    merged = merge(str(adapter), folder / "merged", settings or Settings(measured=False)).folder
    read: Any = AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.float32).eval()
    batch = plan.encoder.batch(plan.held_out or plan.train[:2])
    inputs = batch if read.config.is_encoder_decoder else {name: batch[name] for name in batch if name != "labels"}
    with torch.no_grad():
        found, wanted = read(**inputs).logits, model(**inputs).logits
        with model.disable_adapter():
            before = model(**inputs).logits
    assert (wanted - before).abs().max() > 10 * TOLERANCE, "an adapter that changes nothing proves nothing"
    return float((found - wanted).abs().max())


def shaken(plan: Plan) -> PeftModel:
    """Base and adapter with every trained weight moved at random."""
    model, _ = build(plan)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=STEP)
    return model.eval()


def adapter_of(plan: Plan, model: PeftModel, folder: Path) -> Path:
    """The adapter folder that a run with this plan would leave, without its proof."""
    recipe = plan.recipe
    stage = stage_adapter(model, plan.encoder.processor, folder, plan.base.identity, bare=plan.placement.bare)
    manifest = Manifest(
        base=plan.base.identity,
        recipe=recipe,
        precision=plan.precision.name,
        seed=recipe.training.seed,
        frozen_sha256="",
        data=plan.data,
        steps=plan.facts.steps,
        versions=versions(),
        files=file_hashes(stage),
    )
    write_manifest(stage, manifest)
    return stage.rename(folder / "adapter")
