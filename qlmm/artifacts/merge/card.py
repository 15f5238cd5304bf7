"""The README of a merged model: what it is made of, and how far it is from what it was made of.

Usage: ``atomic_write(folder / "README.md", merge_card(manifest, "trained", error, plain=True, size=14 << 30))``
"""

from __future__ import annotations

from collections.abc import Mapping

import yaml
from pydantic import JsonValue
from transformers import PreTrainedModel

from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.cards.adapter_card import public_ids
from qlmm.artifacts.merge.deltas import Way
from qlmm.artifacts.merge.fidelity import MergeError
from qlmm.core.filenames import ADAPTER_WEIGHTS
from qlmm.core.units import memory

__all__ = ["merge_card"]

_WAYS: dict[Way, str] = {
    "original": "the base as it was published",
    "trained": "the base as the run held it: quantised, dequantised and rounded as in training",
}


def merge_card(
    manifest: Manifest, way: Way, error: MergeError | None, model: PreTrainedModel, *, plain: bool, size: int
) -> str:
    """The card's text, with the Hub's metadata on top.

    Args:
        manifest: the adapter's.
        way: what it was merged into.
        error: what merging cost; None where that was not measured.
        model: the merged model, on the meta device.
        plain: whether transformers alone loads it.
        size: bytes of its weights.
    """
    manifest = manifest.shared()
    front = yaml.safe_dump(dict(_metadata(manifest)), sort_keys=False, allow_unicode=True)
    sections = [_title(manifest, way, size), _error(error), _use(model, plain=plain)]
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(manifest: Manifest) -> Mapping[str, JsonValue]:
    public, _ = public_ids(manifest)
    facts: dict[str, JsonValue] = {"base_model": [*public], "base_model_relation": "finetune"} if public else {}
    return facts | {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vision", "qlmm", "merged", manifest.base.kind],
    }


def _title(manifest: Manifest, way: Way, size: int) -> str:
    parts = "\n".join(
        f"| {role} | `{part.id}` | {part.revision or '—'} |" for role, part in manifest.base.parts.items()
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


def _use(model: PreTrainedModel, *, plain: bool) -> str:
    if plain:
        lines = [
            "from transformers import AutoModelForImageTextToText, AutoProcessor",
            "",
            'processor = AutoProcessor.from_pretrained("PATH")',
            'model = AutoModelForImageTextToText.from_pretrained("PATH")',
        ]
        needs = ""
    else:
        kind = type(model)
        source = "transformers" if kind.__module__.startswith("transformers.") else kind.__module__
        lines = [
            "from pathlib import Path",
            "",
            *(f"import {name}  # makes it known to transformers" for name in _own_parts(model)),
            "from qlmm.model.assembled.processor import load_processor",
            f"from {source} import {kind.__name__}",
            "",
            'processor = load_processor(Path("PATH"))',
            f'model = {kind.__name__}.from_pretrained("PATH")',
        ]
        needs = "Its connector or its tower is one of qlmm's, so it loads with qlmm installed.\n\n"
    code = "\n".join(lines)
    return f"## Use\n\n{needs}```python\n{code}\n```"


def _own_parts(model: PreTrainedModel) -> list[str]:
    """Modules with the classes of parts that transformers lacks."""
    parts = {type(one).__module__ for one in model.modules() if isinstance(one, PreTrainedModel) and one is not model}
    return sorted(name for name in parts if name.startswith("qlmm.model.towers."))
