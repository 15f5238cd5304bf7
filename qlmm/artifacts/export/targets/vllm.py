"""A base and a LoRA adapter beside it, which vLLM serves together.

vLLM takes LoRA of linear layers only: it refuses `modules_to_save` and DoRA
(https://docs.vllm.ai/en/latest/api/vllm/lora/peft_helper/), and applies LoRA in towers and connectors by model and
version (https://docs.vllm.ai/en/latest/features/lora.html). So everything outside the language model is merged into a
copy of the base, and only the language model's LoRA stays an adapter.

Usage: ``qlmm export ADAPTER --to vllm --out DIR``
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from qlmm.artifacts.export.export import Export, Job, Plan, Written, base_drops
from qlmm.artifacts.export.parity import compared
from qlmm.artifacts.export.targets.hf import merge_of, stored
from qlmm.artifacts.export.targets.peft import copy_carried
from qlmm.artifacts.merge.merge import write_checkpoint
from qlmm.artifacts.merge.tensor_plan import is_plain
from qlmm.core.command_line import line
from qlmm.core.errors import ModelError
from qlmm.core.filenames import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD
from qlmm.core.files import atomic_write
from qlmm.model.loading.hub import Located
from qlmm.model.parts.split import PEFT_PREFIX
from qlmm.model.peft.vllm_lora import max_lora_rank, refused_lora

__all__ = ["EXPORT"]


@dataclass(frozen=True, slots=True)
class _Split:
    """Names of the tensors that stay an adapter; what the others are, in words; whether the base needs a copy."""

    served: frozenset[str]
    merged: str
    copied: bool


def _split(job: Job) -> _Split:
    with safe_open(str(job.folder / ADAPTER_WEIGHTS), framework="pt") as file:
        parts = {name: job.base.shape.parts.of(_layer(name)) for name in file.keys()}  # noqa: SIM118  # not a mapping
    rest = {(part, ".lora_" in name) for name, part in parts.items() if part != "language"}
    whole = [f"the whole {part}" for part, lora in sorted(rest) if not lora]
    merged = " and ".join([*whole, *(f"LoRA in the {part}" for part, lora in sorted(rest) if lora)])
    base = job.manifest.recipe.base
    as_held = job.wishes.onto == "trained" and base.quantize != "none"
    served = frozenset(name for name, part in parts.items() if part == "language")
    return _Split(served, merged, copied=merged != "" or base.model is None or as_held)


def _layer(name: str) -> str:
    return name.removeprefix(PEFT_PREFIX).partition(".lora_")[0]


def plan(job: Job) -> Plan:
    """Refuse what vLLM refuses and no copy of the base can cure.

    Raises:
        ModelError: E011 for an adapter without LoRA in the language model, E012 for LoRA that vLLM cannot do, E013 for
            a base that it cannot load.
    """
    _refuse(job)
    split = _split(job)
    drops = []
    if split.merged:
        drops.append(
            f"{split.merged} in the adapter cannot be served as LoRA: merged into base/, which is a copy of the base; "
            "other adapters of the original base do not fit it"
        )
    drops += base_drops(job)
    if split.copied and job.manifest.recipe.base.model is not None and not split.merged:
        drops.append(
            "base/ is a copy of the base as the run had it, dequantised; --onto original serves the published base "
            "without a copy"
        )
    drops.append("whether vLLM can load this base, and apply LoRA to it, stands in its list of models; not tried here")
    return Plan(tuple(drops), merge_of(job, without=split.served).size if split.copied else 0)


def _refuse(job: Job) -> None:
    section, merge = job.manifest.recipe.adapter, "export --to hf, which needs no adapter beside it"
    if section.language != "lora":
        why = "the adapter has no LoRA in the language model, so there is nothing to serve beside a base"
        raise ModelError.one("E011", why, help=merge)
    if (refused := refused_lora(section)) is not None:
        raise ModelError.one("E012", refused, help=merge)
    if not is_plain(job.base.shape.model):
        raise ModelError.one(
            "E013",
            "no program but qlmm has a class for this assembled model: its connector or its parts are not LLaVA's",
            help="answer with qlmm ask, or train with base.connector.kind=mlp and a tower of transformers",
        )


def write(job: Job, made: Path, way: Path) -> Written:
    """Write both, load them by transformers and PEFT, compare."""
    split, adapter = _split(job), made / "adapter"
    if split.copied:
        copy = made / "base"
        copy.mkdir()
        write_checkpoint(merge_of(job, without=split.served), copy, job.tell)
        # The merge calls its result a merged model; here a part of the adapter is still missing.
        made_of = f"A copy of the base with {split.merged or 'nothing'} of the adapter merged in"
        atomic_write(copy / CARD, f"# Base of {job.name}\n\n{made_of}; ../adapter belongs to it.\n")
        named, base, rounded = Located("base", "base", None), Located("base", str(copy), None), stored(copy)
    else:
        named = base = job.base.places["model"]
        rounded = "fp32"
    _write_adapter(job, adapter, split, named)
    what, onto = "base with the LoRA adapter beside it, loaded by transformers and PEFT,", job.wishes.onto
    line = compared(job, what, base.path, adapter, revision=base.revision, onto=onto, stored=rounded)
    return Written((line,), lambda place: (_command(job, place, None if split.copied else base),))


def _write_adapter(job: Job, folder: Path, split: _Split, base: Located) -> None:
    """The language model's LoRA alone, and the processor."""
    folder.mkdir()
    copy_carried(job, folder, without=(ADAPTER_WEIGHTS, ADAPTER_CONFIG))
    with safe_open(str(job.folder / ADAPTER_WEIGHTS), framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in split.served}
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = json.loads((job.folder / ADAPTER_CONFIG).read_text("utf-8"))
    # A pattern that matches by full names would match the layers in tower and connector too.
    config |= {"modules_to_save": None, "target_modules": sorted({_layer(name) for name in split.served})}
    config |= {"base_model_name_or_path": base.path, "revision": base.revision}
    atomic_write(folder / ADAPTER_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _command(job: Job, place: str, published: Located | None) -> str:
    words = ["vllm", "serve", f"{place}/base" if published is None else published.path]
    if published is not None and published.revision:
        words += ["--revision", published.revision]
    rank = max_lora_rank(job.manifest.recipe.adapter.r)
    words += ["--enable-lora", "--lora-modules", f"{job.name}={place}/adapter", "--max-lora-rank", str(rank)]
    return line(*words)


EXPORT = Export("a base and a LoRA adapter beside it, for vLLM", plan, write)
