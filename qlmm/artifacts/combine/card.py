"""The README of a combined adapter: what it was made of, and what was measured of it.

Usage: ``atomic_write(folder / "README.md", combine_card(manifest))``
"""

from __future__ import annotations

from qlmm.artifacts.adapter.manifest import Combination, Manifest
from qlmm.artifacts.cards.adapter_card import base_table, data_table, metadata, public_ids
from qlmm.artifacts.cards.loading_examples import usage
from qlmm.artifacts.cards.sections import marked, table

__all__ = ["combine_card"]


def combine_card(manifest: Manifest) -> str:
    """The card's text, with the Hub's metadata on top; pushing it fills in the licences."""
    made = manifest.combined
    if made is None:
        raise ValueError("the adapter was not combined from others")
    tags, data = ["lora", "vision", "qlmm", "merge", manifest.base.kind], public_ids(manifest)[1] or None
    front = metadata(manifest, "adapter", "peft", tags, datasets=data).to_yaml()
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
    rows = [
        (
            _code(one.name),
            f"{weight:g}",
            f"{one.steps}",
            ", ".join(map(_code, one.data)),
            f"`{one.weights_sha256[:12]}`",
        )
        for one, weight in zip(made.sources, made.weights, strict=True)
    ]
    return table(("adapter", "weight", "steps", "data", "sha256 of its weights"), rows)


def _losses(made: Combination) -> str:
    if not made.losses:
        return f"{made.measured_on[0].upper()}{made.measured_on[1:]}."
    rows = [(_code(name), f"{loss:.4f}") for name, loss in made.losses.items()]
    return f"On {made.measured_on}.\n\n{table(('adapter', 'loss'), rows)}"


def _code(text: str) -> str:
    """A name as code in one cell of a table."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "\\|") + "`"
