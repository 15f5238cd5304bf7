"""The README of a merged model: what it is made of, and how far it is from what it was made of.

Usage: ``atomic_write(folder / "README.md", merge_card(manifest, "trained", error, model, size=14 << 30))``
"""

from __future__ import annotations

from transformers import PreTrainedModel

from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.cards.adapter_card import metadata
from qlmm.artifacts.cards.sections import table
from qlmm.artifacts.merge.deltas import Way
from qlmm.artifacts.merge.fidelity import MergeError
from qlmm.artifacts.merge.tensor_plan import is_plain
from qlmm.core.filenames import ADAPTER_WEIGHTS
from qlmm.core.units import memory

__all__ = ["merge_card"]

_WAYS: dict[Way, str] = {
    "original": "the base as it was published",
    "trained": "the base as the run stored it: quantised, dequantised and rounded as in training",
}
_PLAIN = """\
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("PATH")
model = AutoModelForImageTextToText.from_pretrained("PATH")"""
_OURS = """\
{own}from {module} import {name}
from transformers import AutoProcessor

processor = AutoProcessor.from_pretrained("PATH")
model = {name}.from_pretrained("PATH")"""


def merge_card(manifest: Manifest, way: Way, error: MergeError | None, model: PreTrainedModel, *, size: int) -> str:
    """The card's text, with the Hub's metadata on top.

    Args:
        manifest: the adapter's.
        way: what it was merged into.
        error: None where it was not measured.
        model: the merged model, on the meta device.
        size: bytes of its weights.
    """
    manifest = manifest.shared()
    tags = ["vision", "qlmm", "merged", manifest.base.kind]
    front = metadata(manifest, "finetune", "transformers", tags).to_yaml()
    sections = [_title(manifest, way, size), _error(error), _use(model)]
    return f"---\n{front}\n---\n\n" + "\n\n".join(sections) + "\n"


def _title(manifest: Manifest, way: Way, size: int) -> str:
    rows: list[tuple[str, str, str]] = [
        (role, f"`{part.id}`", part.revision or "—") for role, part in manifest.base.parts.items()
    ]
    rows.append(("adapter", f"sha256 `{manifest.files[ADAPTER_WEIGHTS]}`", ""))
    return (
        f"# Merged with qlmm {manifest.versions['qlmm']}\n\n"
        f"An adapter of {manifest.steps} steps, merged into {_WAYS[way]}. The run stored the language model as "
        f"{manifest.recipe.base.quantize} and computed in {manifest.precision}. Weights: {memory(size)}.\n\n"
        f"{table(('part', 'from', 'revision'), rows)}"
    )


def _error(error: MergeError | None) -> str:
    head = "## Difference to base and adapter\n\n"
    if error is None:
        return head + "Not measured."
    rows = [
        (f"{one.way}{written}", f"{one.largest:.3g}", f"{one.mean:.3g}", f"{one.divergence:.3g}")
        for one, written in zip(error.ways, (" (this model)", ""), strict=False)
    ]
    columns = ("merged onto", "largest difference of a logit", "mean", "KL(adapter, merged), nats per token")
    return (
        f"{head}On {error.tokens} tokens of {error.rows} rows, {error.held_out} of them held out by the run.\n\n"
        f"{table(columns, rows)}\n\n{error.advice[0].upper()}{error.advice[1:]}."
    )


def _use(model: PreTrainedModel) -> str:
    if is_plain(model):
        return f"## Use\n\n```python\n{_PLAIN}\n```"
    kind = type(model)
    module = "transformers" if kind.__module__.startswith("transformers.") else kind.__module__
    # Modules with the classes of parts that transformers lacks.
    parts = {type(one).__module__ for one in model.modules() if isinstance(one, PreTrainedModel) and one is not model}
    own = sorted(name for name in parts if name.startswith("qlmm.model.towers."))
    imports = "".join(f"import {name}  # makes it known to transformers\n" for name in own)
    code = _OURS.format(own=imports, module=module, name=kind.__name__)
    needs = "Its connector or its tower is one of qlmm's, so it loads with qlmm installed."
    return f"## Use\n\n{needs}\n\n```python\n{code}\n```"
