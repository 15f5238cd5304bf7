"""A base and a LoRA adapter beside it, which vLLM serves together.

vLLM takes LoRA of linear layers only: it refuses `modules_to_save` and DoRA
(https://docs.vllm.ai/en/latest/api/vllm/lora/peft_helper/), and applies LoRA in towers and connectors by model and
version (https://docs.vllm.ai/en/latest/features/lora.html). So everything outside the language model is merged into a
copy of the base, and only the language model's LoRA stays an adapter.

Usage: ``qlmm export ADAPTER --to vllm --out DIR``
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from qlmm.artifacts.export.export import Export, Job, Plan, Written, base_drops
from qlmm.artifacts.export.parity import by_transformers, reference, same
from qlmm.artifacts.export.targets.hf import merge_of, stored
from qlmm.artifacts.export.targets.peft import carried
from qlmm.artifacts.merge.merge import write_checkpoint
from qlmm.artifacts.merge.tensor_plan import is_plain
from qlmm.core.errors import ModelError
from qlmm.core.filenames import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD
from qlmm.core.files import atomic_write
from qlmm.model.loading.hub import Located
from qlmm.model.parts.split import PEFT_PREFIX
from qlmm.model.peft.vllm_lora import max_lora_rank, refused_lora

__all__ = ["EXPORT"]

MERGE = "export --to hf, which needs no adapter beside it"


def plan(job: Job) -> Plan:
    """Refuse what vLLM refuses and no copy of the base can cure.

    Raises:
        ModelError: E011 for an adapter without LoRA in the language model, E012 for LoRA that vLLM cannot do, E013 for
            a base that it cannot load.
    """
    section, shape = job.manifest.recipe.adapter, job.shape
    if section.language != "lora":
        raise _refused(
            "E011", "the adapter has no LoRA in the language model, so there is nothing to serve beside a base"
        )
    if (why := refused_lora(section)) is not None:
        raise _refused("E012", why)
    if not is_plain(shape.model):
        raise ModelError.one(
            "E013",
            "no program but qlmm has a class for this assembled model: its connector or its parts are not LLaVA's",
            help="answer with qlmm ask, or train with base.connector.kind=mlp and a tower of transformers",
        )
    drops = []
    baked = _baked(job)
    if baked:
        drops.append(
            f"{' and '.join(baked)} in the adapter cannot be served as LoRA: merged into base/, which is a copy of the "
            "base; other adapters of the original base do not fit it"
        )
    drops += base_drops(job)
    if _needs_copy(job) and job.manifest.recipe.base.model is not None and not baked:
        drops.append(
            "base/ is a copy of the base as the run held it, dequantised; --onto original serves the published base "
            "without a copy"
        )
    drops.append(
        "whether vLLM can load this base, and apply LoRA to it, is for its list of models to say; not tried here"
    )
    return Plan(tuple(drops), merge_of(job, without=_language(job)).size if _needs_copy(job) else 0)


def _refused(code: str, why: str) -> ModelError:
    return ModelError.one(code, why, help=MERGE)


def _baked(job: Job) -> list[str]:
    """What goes into the copy of the base, in words."""
    whole, lora = _parts(job)
    return [*(f"the whole {part}" for part in whole), *(f"LoRA in the {part}" for part in lora)]


def _parts(job: Job) -> tuple[list[str], list[str]]:
    """Parts outside the language model that the adapter holds whole, and those it has LoRA in."""
    with safe_open(str(job.folder / ADAPTER_WEIGHTS), framework="pt") as file:
        names = set(file.keys()) - _language(job)
    lora = {job.shape.parts.of(_plain(name)) for name in names if ".lora_" in name}
    whole = {job.shape.parts.of(_plain(name)) for name in names if ".lora_" not in name}
    return sorted(whole), sorted(lora)


def _plain(name: str) -> str:
    return name.removeprefix(PEFT_PREFIX).partition(".lora_")[0]


def _language(job: Job) -> frozenset[str]:
    """Names of the adapter's tensors that stay an adapter."""
    with safe_open(str(job.folder / ADAPTER_WEIGHTS), framework="pt") as file:
        return frozenset(name for name in file.keys() if job.shape.parts.of(_plain(name)) == "language")  # noqa: SIM118


def _needs_copy(job: Job) -> bool:
    """Whether the base as published will not do."""
    onto_trained = job.wishes.onto == "trained" and job.manifest.recipe.base.quantize != "none"
    return bool(_baked(job)) or job.manifest.recipe.base.model is None or onto_trained


def write(job: Job, made: Path, way: Path) -> Written:
    """Write both, load them by transformers and PEFT, compare."""
    _write_adapter(job, made / "adapter")
    if _needs_copy(job):
        (made / "base").mkdir()
        write_checkpoint(merge_of(job, without=_language(job)), made / "base", job.tell)
        _write_page(job, made / "base")
        base, revision, rounded = str(made / "base"), None, stored(made / "base")
        _name_base(made / "adapter", Located("base", "base", None))
    else:
        published = job.base.places["model"]
        base, revision, rounded = published.path, published.revision, "fp32"
        _name_base(made / "adapter", published)
    job.tell("comparing answers")
    ours = reference(job, onto=job.wishes.onto)
    adapter, onto = made / "adapter", job.wishes.onto
    theirs = by_transformers(base, adapter, job, processor=adapter, onto=onto, revision=revision)
    line = same(ours, theirs, "base with the LoRA adapter beside it, loaded by transformers and PEFT,", stored=rounded)
    return Written((line,), lambda place: (_command(job, place),))


def _write_page(job: Job, base: Path) -> None:
    """The merge calls its result a merged model; here a part of the adapter is still missing."""
    baked = " and ".join(_baked(job)) or "nothing"
    page = (
        f"# Base of {job.name}\n\nA copy of the base with {baked} of the adapter merged in; ../adapter belongs to it.\n"
    )
    atomic_write(base / CARD, page)


def _command(job: Job, place: str) -> str:
    rank = max_lora_rank(job.manifest.recipe.adapter.r)
    words = ["vllm", "serve"]
    if _needs_copy(job):
        words += [f"{place}/base"]
    else:
        served = job.base.places["model"]
        words += [served.path, *(["--revision", served.revision] if served.revision else [])]
    words += ["--enable-lora", "--lora-modules", f"{job.name}={place}/adapter", "--max-lora-rank", str(rank)]
    return shlex.join(words)


def _write_adapter(job: Job, folder: Path) -> None:
    """The language model's LoRA alone, and the processor."""
    folder.mkdir()
    for name in carried(job):
        if name not in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(job.folder / name, folder / name)
    kept = _language(job)
    with safe_open(str(job.folder / ADAPTER_WEIGHTS), framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in kept}
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = json.loads((job.folder / ADAPTER_CONFIG).read_text("utf-8"))
    config["modules_to_save"] = None
    # A pattern that matches by full names would match the layers in tower and connector too.
    config["target_modules"] = sorted({_plain(name) for name in kept})
    atomic_write(folder / ADAPTER_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _name_base(folder: Path, base: Located) -> None:
    config = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))
    config |= {"base_model_name_or_path": base.path, "revision": base.revision}
    atomic_write(folder / ADAPTER_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


EXPORT = Export("a base and a LoRA adapter beside it, for vLLM", plan, write)
