"""What every target of ``qlmm export`` promises; new files in the folder are found and tested alike."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from qlmm.artifacts.adapter.folder import file_hashes
from qlmm.artifacts.adapter.manifest import read_manifest
from qlmm.artifacts.export.export import EXPORTS, Export, Job, Wishes
from qlmm.artifacts.export.targets.peft import carried
from qlmm.core.errors import ModelError, UsageError
from qlmm.core.filenames import ADAPTER_WEIGHTS
from qlmm.core.naming import load, names
from qlmm.model.loading.base import Base, Blueprint
from qlmm.model.parts.split import split
from tests.tiny import tiny_llava, tiny_processor
from tests.unit.artifacts.adapters import adapter_folder, manifest

NAMES = names(EXPORTS)


def target(name: str) -> Export:
    return load(EXPORTS, name, "EXPORT", Export)


def test_these_are_the_targets() -> None:
    assert NAMES == ["gguf", "hf", "ollama", "peft", "vllm"]


@pytest.mark.parametrize("name", NAMES)
def test_a_target_is_documented(name: str) -> None:
    found = target(name)
    assert isinstance(found, Export)
    assert found.doc
    assert f"--to {name} " in (importlib.import_module(f"{EXPORTS}.{name}").__doc__ or "")


def test_an_unknown_target_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="did you mean `ollama`"):
        target("olama")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job on an adapter whose base is tiny."""
    processor = tiny_processor()
    model = tiny_llava(processor)
    model.save_pretrained(tmp_path / "base")
    folder = adapter_folder(tmp_path)
    processor.save_pretrained(folder)
    _write_lora(folder)
    facts = read_manifest(folder)
    base = facts.recipe.base.model_copy(update={"quantize": "nf4", "model": str(tmp_path / "base")})
    changes = {"recipe": facts.recipe.model_copy(update={"base": base}), "files": file_hashes(folder)}
    resolved, wishes = Base.resolve(base), Wishes(onto="original")
    # With weights, which one of the tests saves.
    vars(resolved)["shape"] = Blueprint(model, split(model))
    return Job(folder, facts.model_copy(update=changes), resolved, wishes, "run", lambda line: None)


def _write_lora(folder: Path) -> None:
    LoraConfig(r=4, target_modules=["q_proj"]).save_pretrained(str(folder))
    layer = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    lora = {"A": torch.zeros(4, 64), "B": torch.zeros(64, 4)}
    save_file({f"{layer}.lora_{key}.weight": value for key, value in lora.items()}, folder / ADAPTER_WEIGHTS)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "vllm"])
def test_a_plan_says_what_gets_lost_and_writes_nothing(name: str, job: Job) -> None:
    before = sorted(job.folder.parent.rglob("*"))
    plan = target(name).plan(job)
    assert any("nf4" in drop for drop in plan.drops)
    assert plan.size > 0
    assert sorted(job.folder.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["gguf", "hf", "ollama"])
def test_what_cannot_be_merged_is_refused_by_the_plan(name: str, job: Job) -> None:
    (job.folder.parent / "base" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="A026"):
        target(name).plan(job)


def test_a_plan_counts_what_lies_on_the_disk_at_once(job: Job) -> None:
    """Weights of 16 bits become files of 32, beside the merged model."""
    job.base.shape.model.to(torch.bfloat16).save_pretrained(job.folder.parent / "base")
    weights = sum(value.numel() for value in job.base.shape.model.state_dict().values())
    small, large = (target("gguf").plan(replace(job, wishes=Wishes("original", kind))).size for kind in ("f16", "f32"))
    assert small > 2 * weights
    # Not written: the tower's last block and norm, which LLaVA does not read.
    assert large > 2 * weights + 0.8 * 4 * weights


def test_only_files_of_an_adapter_are_carried_along(job: Job) -> None:
    strange = {"../x.txt": "", "/etc/passwd": "", "notes.md": "", "qlmm.json": "", "held-out/0.png": "", "a.bin": ""}
    facts = job.manifest.model_copy(update={"files": job.manifest.files | strange})
    found = carried(replace(job, manifest=facts))
    assert {ADAPTER_WEIGHTS, "adapter_config.json", "tokenizer.json", "chat_template.jinja"} <= set(found)
    assert strange.keys().isdisjoint(found)


@pytest.mark.parametrize("name", ["gguf", "ollama"])
def test_gguf_names_the_package_that_is_missing(name: str, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gguf" else honest(name))
    with pytest.raises(UsageError, match=r"E020[^$]*pip install 'qlmm\[gguf\]'"):
        target(name).plan(job)


@pytest.mark.parametrize("name", ["gguf", "ollama"])
@pytest.mark.parametrize(("key", "value"), [("model_type", "blip"), ("model_type", "florence2")])
def test_what_llama_cpp_does_not_know_is_refused_naming_what_it_does(
    name: str, key: str, value: str, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(job.base.shape.model.config), key, value)
    with pytest.raises(ModelError, match=r"known: llava, idefics3, smolvlm"):
        target(name).plan(job)


@pytest.mark.parametrize("name", ["gguf", "ollama"])
def test_a_converter_that_is_not_there_is_refused(name: str, job: Job) -> None:
    with pytest.raises(UsageError, match="E024"):
        target(name).plan(replace(job, wishes=Wishes(converter=Path("nowhere.py"))))


def test_peft_refuses_an_assembled_base_and_says_what_works(tmp_path: Path) -> None:
    made = Job(tmp_path, manifest("assembled"), None, Wishes(), "run", lambda line: None)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"E010[^$]*export --to hf"):
        target("peft").plan(made)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"language": "frozen"}, "E011"),
        ({"variant": "dora"}, "E012"),
        ({"variant": "pissa"}, "E012"),
        ({"r": 1024}, "E012"),
        ({"targets": ("experts",)}, "E012"),
    ],
)
def test_vllm_refuses_what_it_cannot_serve(changes: dict[str, object], code: str, job: Job) -> None:
    section = job.manifest.recipe.adapter.model_copy(update=changes)
    recipe = job.manifest.recipe.model_copy(update={"adapter": section})
    made = replace(job, manifest=job.manifest.model_copy(update={"recipe": recipe}), wishes=Wishes())
    with pytest.raises(ModelError, match=code) as caught:
        target("vllm").plan(made)
    assert "export --to hf" in str(caught.value)
