"""The README of a merged model: what it is made of, and how far it is from what it was made of.

Usage: ``atomic_write(folder / "README.md", merge_card(manifest, "trained", error, plain=True, size=14 << 30))``
"""

from __future__ import annotations

from typing import Any

import yaml

from qlmm.artifacts.deltas import Way
from qlmm.artifacts.manifest import Manifest
from qlmm.artifacts.merge_error import MergeError
from qlmm.core.units import memory
from qlmm.model.adapters import ADAPTER_WEIGHTS

__all__ = ["merge_card"]

_WAYS: dict[Way, str] = {
    "original": "the base as it was published",
    "trained": "the base as the run held it: quantised, dequantised and rounded as in training",
}


def merge_card(manifest: Manifest, way: Way, error: MergeError | None, *, plain: bool, size: int) -> str:
    """The card's text, with the Hub's metadata on top.

    Args:
        manifest: the adapter's.
        way: what it was merged into.
        error: what merging cost; None where that was not measured.
        plain: whether transformers alone loads it.
        size: bytes of its weights.
    """
    front = yaml.safe_dump(_metadata(manifest), sort_keys=False, allow_unicode=True)
    sections = [_title(manifest, way, size), _error(error), _use(plain=plain)]
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(manifest: Manifest) -> dict[str, Any]:
    ids = [part["id"].partition("@")[0] for part in manifest.base["parts"].values()]
    public = [name for name in ids if not name.startswith("builtin:")]
    facts: dict[str, Any] = {"base_model": public, "base_model_relation": "finetune"} if public else {}
    return facts | {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vision", "qlmm", "merged", manifest.base["kind"]],
    }


def _title(manifest: Manifest, way: Way, size: int) -> str:
    parts = "\n".join(
        f"| {role} | `{facts['id']}` | {facts['revision'] or '—'} |" for role, facts in manifest.base["parts"].items()
    )
    return (
        f"# Merged with qlmm {manifest.versions['qlmm']}\n\n"
        f"An adapter of {manifest.steps} steps, merged into {_WAYS[way]}. The run stored the language model as "
        f"{manifest.recipe.base.quantize} and computed in {manifest.precision}. Weights: {memory(size)}.\n\n"
        f"| part | from | revision |\n|---|---|---|\n{parts}\n"
        f"| adapter | sha256 `{manifest.files[ADAPTER_WEIGHTS]}` | |"
    )


def _error(error: MergeError | None) -> str:
    head = "## Difference to base and adapter\n\n"
    if error is None:
        return head + "Not measured."
    rows = "\n".join(
        f"| {one.way}{' (this model)' if place == 0 else ''} | {one.largest:.3g} | {one.mean:.3g} "
        f"| {one.divergence:.3g} |"
        for place, one in enumerate(error.ways)
    )
    return (
        f"{head}On {error.tokens} tokens of {error.rows} rows, {error.held_out} of them held out by the run.\n\n"
        "| merged onto | largest difference of a logit | mean | KL(adapter, merged), nats per token |\n"
        f"|---|---|---|---|\n{rows}\n\n{error.advice[0].upper()}{error.advice[1:]}."
    )


def _use(*, plain: bool) -> str:
    kind = "AutoModelForImageTextToText" if plain else "AssembledForConditionalGeneration"
    source = "transformers" if plain else "qlmm.model.assembled.model"
    processor = (
        'from transformers import AutoProcessor\n\nprocessor = AutoProcessor.from_pretrained("PATH")'
        if plain
        else "from pathlib import Path\n\nfrom qlmm.model.assembled.processor import load_processor\n\n"
        'processor = load_processor(Path("PATH"))'
    )
    needs = "" if plain else "Its connector is one of qlmm's, so it loads with qlmm installed.\n\n"
    return (
        f"## Use\n\n{needs}```python\nfrom {source} import {kind}\n{processor}\n"
        f'model = {kind}.from_pretrained("PATH")\n```'
    )
