"""The benchmark that needs a GPU runs from end to end without one at a small shape, so that it cannot rot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from benchmarks import dpo, gpu, sft, shapes
from benchmarks.machine import RESULTS, machine, write_result
from qlmm.model.connectors.abstractor import swiglu_width

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6


def test_gpu_benchmark_runs_at_a_tiny_shape(tmp_path: Path) -> None:
    """Parts from random weights, NF4, the shipped recipe, the proof, TRL beside it, and the result in a file."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--steps", str(STEPS), "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "all 6 promises kept" in done.stdout
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("gpu-tiny-")
    found = json.loads(file.read_text())["result"]
    assert "failed" not in found
    assert "skipped" not in found
    assert {found["finetune"]["tokens"][name] for name in ("median", "p95", "max")} == {128}
    assert {part["part"]: part["storage"] for part in found["finetune"]["parts"]}["language"] == "nf4"
    assert all(promise["kept"] for promise in found["proof"]["promises"])
    assert found["proof"]["reload"]["same"]
    for arm in ("finetune", "trl", "larger_batch"):
        assert found[arm]["tokens_per_s"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line_and_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "needs one CUDA GPU" in said.err


def test_the_real_shape_is_the_released_one() -> None:
    assert swiglu_width(shapes.OWL.width) == 11_008
    words = shapes.tokenizer(shapes.OWL.vocabulary)
    assert len(words) == 32_000
    assert len(words(" abc def").input_ids) == 2
    assert words.decode(words("plain text, any bytes: é\n").input_ids) == "plain text, any bytes: é\n"


def test_weights_written_shard_by_shard_are_a_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "SHARD_BYTES", 100_000)
    shapes.TINY.write(tmp_path, "cpu")
    folder = tmp_path / "language"
    assert len(list(folder.glob("*.safetensors"))) > 2
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    with safe_open(folder / places["model.embed_tokens.weight"], "pt") as stored:
        assert torch.equal(model.get_input_embeddings().weight, stored.get_tensor("model.embed_tokens.weight"))


def test_results_name_the_kind_of_machine_and_nothing_that_is_the_owners(tmp_path: Path) -> None:
    file = write_result("some", {"figure": 1}, tmp_path)
    assert json.loads(file.read_text()) == {"machine": machine(), "result": {"figure": 1}}
    assert set(machine()) == {
        *("cpu", "cores", "memory_bytes", "gpu", "python", "date"),
        *("torch", "transformers", "trl", "peft", "bitsandbytes"),
    }
    for committed in RESULTS.glob("*.json"):
        assert not any(place in committed.read_text() for place in ("/home", "/root", "/work", "/tmp"))


def test_preference_training_has_the_losses_of_trl_alone(tmp_path: Path) -> None:
    """TRL's own trainer and collator on raw rows are the oracle; every switch on, every switch off."""
    found = dpo.measure(tmp_path, dpo.TINY, pairs=4, device="cpu")
    assert found["largest_difference_of_losses"] < 1e-4
    curves = [found["runs"][name]["losses"] for name in ("trl", "all", "none", *dpo.SWITCHES)]
    assert len(set(map(len, curves))) == 1
    assert curves[0][0] == pytest.approx(0.693147, abs=1e-4)
    assert curves[0][-1] < 0.68
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=1e-4)


@pytest.mark.parametrize("pair", [sft.Pair(256, "fp32", checkpointing=True), sft.Pair(64, "fp32", checkpointing=False)])
def test_supervised_training_has_the_losses_of_trl_alone(tmp_path: Path, pair: sft.Pair) -> None:
    """TRL's own trainer is the oracle of each lever, alone and together."""
    sft.TINY.write(tmp_path, "cpu")
    sft.write_rows(tmp_path, 2 * sft.BATCH)
    curves = {arm: sft.run(tmp_path, pair, arm, steps=2)["losses"] for arm in sft.ARMS}
    for curve in curves.values():
        assert len(curve) == 2
        assert curve == pytest.approx(curves["trl"], abs=1e-5)
