"""A tiny trained adapter exported every way, each loaded as a stranger would and held against the adapter itself."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from qlmm.api import finetune, load
from qlmm.artifacts.adapter.folder import file_hashes
from qlmm.artifacts.export.export import Wishes, export
from qlmm.artifacts.export.parity import same
from qlmm.artifacts.merge.deltas import Deltas
from qlmm.core.errors import RunError, UsageError
from tests.assembling import image_processor, tower
from tests.merge_cases import CASES, assembled
from tests.runs import TinyRun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    run = TinyRun.make(tmp_path_factory.mktemp("exports"))
    finetune(run.recipe("adapter.vision=lora", "training.steps=4"))
    return run


@pytest.fixture(scope="module")
def made(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("made")

    def make(to: str, outtype: str = "f16") -> Path:
        out = folder / f"{to}-{outtype}"
        if not out.exists():
            export(str(tiny.folder / "run"), to, out, Wishes(outtype=outtype))
        return out

    return make


def logits(model: Any, tiny: TinyRun) -> torch.Tensor:
    loaded = load(tiny.folder / "run" / "adapter")
    rows = [loaded.encoder.batch([row]) for row in _rows(tiny)]
    with torch.no_grad():
        found = [model(**{key: row[key] for key in row if key != "labels"}).logits[0, -1] for row in rows]
    return torch.stack(found)


def _rows(tiny: TinyRun) -> Any:
    from qlmm.proof.probe import probe_rows

    return probe_rows(tiny.folder / "run" / "adapter")


@pytest.fixture(scope="module")
def expected(tiny: TinyRun) -> torch.Tensor:
    return logits(load(tiny.folder / "run" / "adapter").model, tiny)


def test_exports_leave_the_source_alone_and_say_what_they_are(
    tiny: TinyRun, made: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tiny.folder / "run" / "adapter"
    before, told = file_hashes(source), []
    done = export(str(source), "vllm", tmp_path / "out", Wishes(), told.append)
    assert file_hashes(source) == before
    assert [line.removeprefix("note: ") for line in told if line.startswith("note: ")] == list(done.drops)
    page = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert all(line in page for line in (*done.drops, *done.proof))
    assert str(tmp_path) not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_hf_is_an_ordinary_checkpoint(made: Callable[[str], Path], tiny: TinyRun, expected: torch.Tensor) -> None:
    model = AutoModelForImageTextToText.from_pretrained(made("hf"), dtype=torch.float32)
    assert torch.allclose(logits(model, tiny), expected, atol=1e-4)
    assert not (made("hf") / "adapter_config.json").exists()


def test_peft_loads_without_qlmm(made: Callable[[str], Path], tiny: TinyRun, expected: torch.Tensor) -> None:
    base = AutoModelForImageTextToText.from_pretrained(tiny.folder / "base", dtype=torch.float32)
    assert torch.equal(logits(PeftModel.from_pretrained(base, made("peft")).eval(), tiny), expected)
    assert not (made("peft") / "qlmm.json").exists()


def test_vllm_gets_nothing_that_it_refuses(made: Callable[[str], Path], tiny: TinyRun, expected: torch.Tensor) -> None:
    base = AutoModelForImageTextToText.from_pretrained(made("vllm") / "base", dtype=torch.float32)
    plain = logits(base, tiny)
    adapted = PeftModel.from_pretrained(base, made("vllm") / "adapter").eval()
    assert torch.allclose(logits(adapted, tiny), expected, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-3), "the language model's LoRA does nothing"
    config = json.loads((made("vllm") / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert config["modules_to_save"] is None
    assert isinstance(config["target_modules"], list)
    names = load_file(made("vllm") / "adapter" / "adapter_model.safetensors")
    assert names
    assert all(".language_model." in name and ".lora_" in name for name in names)


def test_a_language_only_adapter_needs_no_copy_of_the_base(tiny: TinyRun, tmp_path: Path) -> None:
    finetune(tiny.recipe("adapter.connector=frozen", "training.steps=2", f"output.dir={tmp_path}/run"))
    done = export(str(tmp_path / "run"), "vllm", tmp_path / "out", Wishes())
    assert not (tmp_path / "out" / "base").exists()
    assert str(tiny.folder / "base") in done.commands[0]
    assert "--max-lora-rank 8" in done.commands[0]


def test_commands_are_whole_whatever_run_base_and_place_are_called(tmp_path: Path) -> None:
    run = TinyRun.make(tmp_path / "me@home")
    finetune(run.recipe("adapter.connector=frozen", "training.steps=2", f"output.dir={tmp_path}/LAYOUT v1"))
    out = tmp_path / "my OUT"
    done = export(str(tmp_path / "LAYOUT v1"), "vllm", out, Wishes())
    words = shlex.split(done.commands[0])
    assert words[:4] == ["vllm", "serve", str(run.folder / "base"), "--enable-lora"]
    assert f"LAYOUT-v1={out}/adapter" in words
    shown = (out / "README.md").read_text("utf-8").partition("```bash\n")[2].partition("\n")[0]
    assert "LAYOUT-v1=./adapter" in shlex.split(shown)
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == words[2]
    made = export(str(tmp_path / "LAYOUT v1"), "ollama", tmp_path / "an OUT", Wishes())
    assert shlex.split(made.commands[0]) == ["ollama", "create", "LAYOUT-v1", "-f", f"{tmp_path}/an OUT/Modelfile"]


@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0", "f32"])
def test_gguf_holds_the_merged_weights(outtype: str, made: Callable[..., Path]) -> None:
    merged = AutoModelForImageTextToText.from_pretrained(made("hf"), dtype=torch.float32)
    folder = made("gguf", outtype)
    assert {path.name for path in folder.iterdir()} == {"README.md", "model.gguf", "mmproj.gguf"}
    read = AutoModelForCausalLM.from_pretrained(str(folder), gguf_file="model.gguf", dtype=torch.float32).eval()
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        apart = (read(input_ids=ids).logits - merged(input_ids=ids).logits).abs().max()
    assert apart < {"f32": 1e-4, "f16": 1e-2, "bf16": 5e-2, "q8_0": 5e-2}[outtype]


def test_ollama_gets_a_modelfile(made: Callable[[str], Path]) -> None:
    lines = (made("ollama") / "Modelfile").read_text("utf-8")
    assert lines.startswith("FROM ./model.gguf\nFROM ./mmproj.gguf\n")
    assert 'TEMPLATE """' in lines
    assert 'PARAMETER stop "</s>"' in lines


def test_an_export_that_answers_otherwise_is_not_made(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deltas, "_merge", lambda self, name, base, dtype: base.to(dtype) + 0.1)
    with pytest.raises(RunError, match="E005"):
        export(str(tiny.folder / "run"), "hf", tmp_path / "out", Wishes())
    assert list(tmp_path.iterdir()) == []


def test_same_is_not_fooled_by_nan() -> None:
    one, other = torch.zeros(4, 8), torch.full((4, 8), float("nan"))
    with pytest.raises(RunError, match="E005"):
        same([one], [other], "x", ["fp32"])


def test_llama_cpps_own_converter_is_used_for_what_is_not_known(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converter = tmp_path / "convert.py"
    converter.write_text(
        "import sys, gguf, numpy\n"
        "place = sys.argv[sys.argv.index('--outfile') + 1]\n"
        "writer = gguf.GGUFWriter(place, 'clip' if '--mmproj' in sys.argv else 'llama')\n"
        "writer.add_tensor('a', numpy.zeros(4, dtype=numpy.float32))\n"
        "writer.write_header_to_file()\nwriter.write_kv_data_to_file()\nwriter.write_tensors_to_file()\nwriter.close()\n"
    )
    monkeypatch.setattr("qlmm.artifacts.export.llamacpp.vision.VISION", {})
    done = export(str(tiny.folder / "run"), "gguf", tmp_path / "out", Wishes(converter=converter))
    assert any("not compared" in drop for drop in done.drops)
    assert all("1 tensors" in line for line in done.proof)
    converter.write_text("raise SystemExit('no such architecture')\n")
    with pytest.raises(RunError, match=r"E025.*no such architecture"):
        export(str(tiny.folder / "run"), "gguf", tmp_path / "again", Wishes(converter=converter))
    assert not (tmp_path / "again").exists()


@pytest.fixture(scope="module", params=["mlp", "linear", "abstractor"])
def assembled_adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An adapter of an assembled base, whose language model lacks a row for the picture's token."""
    folder = tmp_path_factory.mktemp(request.param)
    finetune(assembled(folder, CASES[request.param], "training.steps=2"))
    return request.param, folder / "run" / "adapter"


# What each connector can become: llama.cpp's LLaVA has an activation that a linear one lacks.
POSSIBLE = {"mlp": {"hf", "vllm", "gguf"}, "linear": {"hf", "vllm"}, "abstractor": {"hf"}}


@pytest.mark.parametrize("to", ["hf", "vllm", "gguf"])
def test_an_assembled_model_is_exported_proven_or_refused(
    to: str, assembled_adapter: tuple[str, Path], tmp_path: Path
) -> None:
    kind, adapter = assembled_adapter
    if to in POSSIBLE[kind]:
        assert export(str(adapter), to, tmp_path / "out", Wishes()).proof
        assert (tmp_path / "out" / "README.md").is_file()
    else:
        with pytest.raises(UsageError, match=r"E013|E033"):
            export(str(adapter), to, tmp_path / "out", Wishes())
        assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def of_own_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose base is LLaVA's class with a tower that transformers lacks."""
    folder = tmp_path_factory.mktemp("own")
    loaded = assembled(folder, CASES["mlp"], "training.steps=2")
    shutil.rmtree(folder / "vision")
    tower("efficientnet_lite0").save_pretrained(folder / "vision")
    image_processor("efficientnet_lite0").save_pretrained(folder / "vision")
    finetune(loaded)
    return folder / "run" / "adapter"


def _runs(page: str, folder: Path) -> str:
    """What the page's code leads to in a fresh process: the class of the model it loads."""
    code = page.partition("```python\n")[2].partition("```")[0].replace("PATH", str(folder))
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(type(model).__name__)"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_model_with_a_tower_of_qlmms_own_says_how_it_is_loaded(of_own_tower: Path, tmp_path: Path) -> None:
    done = export(str(of_own_tower), "hf", tmp_path / "out", Wishes())
    assert any("no class" in drop for drop in done.drops)
    assert _runs((tmp_path / "out" / "README.md").read_text("utf-8"), tmp_path / "out") == (
        "LlavaForConditionalGeneration"
    )


def test_the_card_of_an_assembled_model_works_as_it_stands(assembled_adapter: tuple[str, Path], tmp_path: Path) -> None:
    kind, adapter = assembled_adapter
    done = export(str(adapter), "hf", tmp_path / "out", Wishes())
    assert any("no class" in drop for drop in done.drops) is (kind == "abstractor")
    assert _runs((tmp_path / "out" / "README.md").read_text("utf-8"), tmp_path / "out") == (
        "AssembledForConditionalGeneration" if kind == "abstractor" else "LlavaForConditionalGeneration"
    )


@pytest.mark.parametrize(("to", "code"), [("vllm", "E013"), ("gguf", "E033"), ("peft", "E010")])
def test_no_other_program_is_given_a_tower_it_has_no_class_for(
    to: str, code: str, of_own_tower: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=code):
        export(str(of_own_tower), to, tmp_path / "out", Wishes())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_run_is_exported_as_it_was_held(kind: str, tmp_path: Path) -> None:
    run = TinyRun.make(tmp_path / "tiny")
    finetune(run.recipe(f"base.quantize={kind}", "adapter.connector=frozen", "training.steps=2"))
    adapter = str(run.folder / "run")
    done = export(adapter, "hf", tmp_path / "hf", Wishes())
    assert any("int8" in drop for drop in done.drops) is (kind == "int8")
    copied = export(adapter, "vllm", tmp_path / "held", Wishes())
    assert any("dequantised" in drop for drop in copied.drops)
    held = load_file(tmp_path / "held" / "base" / "model.safetensors")
    published = load_file(run.folder / "base" / "model.safetensors")
    assert any(not torch.equal(held[name], published[name]) for name in held)
    plain = export(adapter, "vllm", tmp_path / "published", Wishes(onto="original"))
    assert any(kind in drop for drop in plain.drops)
    assert not (tmp_path / "published" / "base").exists()
