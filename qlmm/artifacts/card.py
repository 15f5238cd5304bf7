"""The adapter's README: a model card made of facts, so that it cannot promise what was not measured.

Usage: ``atomic_write(folder / "README.md", card(manifest, plan, proof))``
"""

from __future__ import annotations

from typing import Any

import yaml

from qlmm.artifacts.manifest import Manifest
from qlmm.training.facts import PartProof, Proof

__all__ = ["card"]


def card(manifest: Manifest, proof: Proof) -> str:
    """The card's text, with the Hub's metadata on top."""
    front = yaml.safe_dump(_metadata(manifest), sort_keys=False, allow_unicode=True)
    sections = [_title(manifest), _trained(proof), _pictures(proof), _promises(proof), _data(manifest), _use(manifest)]
    return f"---\n{front}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _metadata(manifest: Manifest) -> dict[str, Any]:
    ids = [part["id"] for part in manifest.base["parts"].values()]
    public = [name.partition("@")[0] for name in ids if not name.startswith("builtin:")]
    facts: dict[str, Any] = {"base_model": public, "base_model_relation": "adapter"} if public else {}
    return facts | {
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text",
        "tags": ["lora", "vision", "qlmm", manifest.base["kind"]],
    }


def _title(manifest: Manifest) -> str:
    parts = "\n".join(
        f"| {role} | `{facts['id']}` | {facts['revision'] or '—'} |" for role, facts in manifest.base["parts"].items()
    )
    return (
        f"# Adapter trained with qlmm {manifest.versions['qlmm']}\n\n"
        f"{manifest.steps} steps on {'an assembled' if manifest.base['kind'] == 'assembled' else 'a native'} base, "
        f"language model stored as {manifest.recipe.base.quantize}, computed in {manifest.precision}.\n\n"
        f"| part | from | revision |\n|---|---|---|\n{parts}"
    )


def _trained(proof: Proof) -> str:
    rows = "\n".join(_part(part) for part in proof.parts if part.trained_tensors or part.frozen_tensors)
    head = "| part | tensors trained | weights trained | share moved | largest gradient | frozen tensors |"
    return f"## What was trained\n\n{head}\n|---|---|---|---|---|---|\n{rows}"


def _part(part: PartProof) -> str:
    frozen = "—" if not part.frozen_tensors else "unchanged" if part.frozen_identical else "CHANGED"
    moved = f"{part.moved_share:.1%}" if part.trained_tensors else "—"
    gradient = f"{part.grad_norm_max:.3g}" if part.trained_tensors else "—"
    return f"| {part.part} | {part.trained_tensors} | {part.trained_parameters:,} | {moved} | {gradient} | {frozen} |"


def _pictures(proof: Proof) -> str:
    lines = [
        f"| {when} | {loss.right:.3f} | {loss.shuffled:.3f} | {loss.none:.3f} |"
        for when, loss in (("before", proof.before), ("after", proof.after))
        if loss is not None
    ]
    if not lines:
        return ""
    head = "| | right picture | another row's picture | no picture |\n|---|---|---|---|"
    return "## Held-out loss, nats per token\n\n" + head + "\n" + "\n".join(lines)


def _promises(proof: Proof) -> str:
    lines = "\n".join(f"- {'kept' if p.kept else '**BROKEN**'}: {p.name} ({p.detail})" for p in proof.promises)
    return f"## Proof\n\n{lines}"


def _data(manifest: Manifest) -> str:
    rows = "\n".join(f"| `{source['path']}` | {source['kept']:,} |" for source in manifest.data["sources"])
    return f"## Data\n\n| source | rows |\n|---|---|\n{rows}\n\nFingerprint: `{manifest.data['sha256']}`"


def _use(manifest: Manifest) -> str:
    ours = 'import qlmm\n\nloaded = qlmm.load("PATH")  # model, processor, manifest'
    if manifest.base["kind"] == "assembled":
        return f"## Use\n\n```python\n{ours}\n```"
    model, _, revision = (manifest.recipe.base.model or "").partition("@")
    pinned = f', revision="{revision}"' if revision else ""
    peft = (
        "from peft import PeftModel\nfrom transformers import AutoModelForImageTextToText\n\n"
        f'base = AutoModelForImageTextToText.from_pretrained("{model}"{pinned})\n'
        'model = PeftModel.from_pretrained(base, "PATH")'
    )
    return f"## Use\n\nWith plain PEFT, without qlmm:\n\n```python\n{peft}\n```\n\nWith qlmm:\n\n```python\n{ours}\n```"
