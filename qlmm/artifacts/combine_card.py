"""The README of a combined adapter: what it was made of, and what was measured of it.

Usage: ``atomic_write(folder / "README.md", combine_card(manifest))``
"""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCardData

from qlmm.artifacts.card import public_ids
from qlmm.artifacts.manifest import Manifest
from qlmm.artifacts.scrub import shorten
from qlmm.artifacts.usage import usage

__all__ = ["combine_card"]


def combine_card(manifest: Manifest) -> str:
    """The card's text, with the Hub's metadata on top."""
    made: dict[str, Any] = manifest.combined or {}
    bases, data = public_ids(manifest)
    front = ModelCardData(
        base_model=bases or None,
        base_model_relation="adapter" if bases else None,
        library_name="peft",
        pipeline_tag="image-text-to-text",
        datasets=data or None,
        tags=["lora", "vision", "qlmm", "merge", manifest.base["kind"]],
    ).to_yaml()
    parts = ", ".join(f"{role} `{shorten(str(facts['id']))}`" for role, facts in manifest.base["parts"].items())
    rows = "\n".join(
        f"| {source['name']} | {weight:g} | {source['steps']} | `{source['weights_sha256'][:12]}` |"
        for source, weight in zip(made["sources"], made["weights"], strict=True)
    )
    sections = [
        f"# Adapter combined with qlmm {manifest.versions['qlmm']}",
        f"Made of {len(made['sources'])} adapters of one base ({parts}) by {made['method']}; nothing was trained.",
        f"| adapter | weight | steps | weights |\n|---|---|---|---|\n{rows}",
        "Modules that were trained whole are combined linearly, as base plus weighted differences to the base.",
        _losses(made["losses"]),
        f"## Proof\n\n- read back in a fresh process: largest difference of logits {made['reload']:.3g}",
        f"## Use\n\n{usage(manifest, None)}",
    ]
    return f"---\n{front}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _losses(losses: dict[str, float]) -> str:
    if not losses:
        return "Its held-out loss was not measured."
    rows = "\n".join(f"| {shorten(name)} | {loss:.4f} |" for name, loss in losses.items())
    return f"## Held-out loss, nats per token\n\n| adapter | loss |\n|---|---|\n{rows}"
