"""The README of a combined adapter: what it was made of, and what was measured of it.

Usage: ``atomic_write(folder / "README.md", combine_card(manifest))``
"""

from __future__ import annotations

from huggingface_hub import ModelCardData

from qlmm.artifacts.adapter.manifest import Combination, Manifest
from qlmm.artifacts.cards.adapter_card import base_table, data_table, public_ids
from qlmm.artifacts.cards.loading_examples import usage
from qlmm.artifacts.cards.sections import marked

__all__ = ["combine_card"]


def combine_card(manifest: Manifest) -> str:
    """The card's text, with the Hub's metadata on top; pushing it fills in the licences."""
    made = manifest.combined
    if made is None:
        raise ValueError("the adapter was not combined from others")
    bases, data = public_ids(manifest)
    front = ModelCardData(
        base_model=bases or None,
        base_model_relation="adapter" if bases else None,
        library_name="peft",
        pipeline_tag="image-text-to-text",
        datasets=data or None,
        tags=["lora", "vision", "qlmm", "merge", manifest.base.kind],
    ).to_yaml()
    sections = [
        f"# Adapter combined with qlmm {manifest.versions['qlmm']}",
        f"Made of {len(made.sources)} adapters of one base by {made.method}; nothing was trained.",
        marked("base", base_table(manifest, {})),
        f"## Adapters\n\n{_sources(made)}",
        "Modules that were trained whole are combined linearly, as base plus weighted differences to the base.",
        f"## Held-out loss, nats per token\n\n{_losses(made)}",
        f"## Proof\n\n- read back in a fresh process: largest difference of logits {made.reload:.3g}",
        marked("data", data_table(manifest, {})),
        f"## Use\n\n{marked('use', usage(manifest, None))}",
    ]
    return f"---\n{front}\n---\n\n" + "\n\n".join(sections) + "\n"


def _sources(made: Combination) -> str:
    rows = "\n".join(
        f"| {_code(source.name)} | {weight:g} | {source.steps} "
        f"| {', '.join(_code(path) for path in source.data)} | `{source.weights_sha256[:12]}` |"
        for source, weight in zip(made.sources, made.weights, strict=True)
    )
    return f"| adapter | weight | steps | data | sha256 of its weights |\n|---|---|---|---|---|\n{rows}"


def _losses(made: Combination) -> str:
    rows = f"{made.measured_on[0].upper()}{made.measured_on[1:]}."
    if not made.losses:
        return rows
    losses = "\n".join(f"| {_code(name)} | {loss:.4f} |" for name, loss in made.losses.items())
    return f"On {made.measured_on}.\n\n| adapter | loss |\n|---|---|\n{losses}"


def _code(text: str) -> str:
    """A name in one cell of a table, shown and not acted upon."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "\\|") + "`"
