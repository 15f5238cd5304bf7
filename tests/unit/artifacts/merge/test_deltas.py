"""One weight at a time, an adapter does what PEFT's own merge of the whole model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from bitsandbytes import functional
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.merge import deltas as module
from qlmm.artifacts.merge.deltas import AsTrained, Deltas, requantised
from qlmm.core.errors import ModelError
from qlmm.model.loading.base import Base
from qlmm.model.numerics.precision import Precision
from tests.runs import TinyRun
from tests.unit.artifacts.adapters import manifest

WEIGHTS = "adapter_model.safetensors"
FP32 = torch.float32


class Small(nn.Module):
    """Two layers with names that patterns can tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(24, 16), "v": nn.Linear(24, 16)}) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Both(Small):
    """The same beside a model whose linear layers are transposed."""

    def __init__(self, gpt: nn.Module) -> None:
        super().__init__()
        self.gpt = gpt


def saved(folder: Path, **settings: Any) -> tuple[Small, Small]:
    """An adapter with random weights in a folder; the base, and what PEFT merges of both."""
    torch.manual_seed(0)
    base = Small()
    start = {name: value.clone() for name, value in base.state_dict().items()}
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q", "v"], **settings)
    wrapped = get_peft_model(base, config)  # type: ignore[arg-type]  # any module will do
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    wrapped.save_pretrained(str(folder))
    fresh = Small()
    fresh.load_state_dict(start)
    again = Small()
    again.load_state_dict(start)
    merged = PeftModel.from_pretrained(again, str(folder)).merge_and_unload()  # type: ignore[arg-type, operator]
    return fresh, merged


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"rank_pattern": {"q": 2, r"layers.1.v": 7}, "alpha_pattern": {"v": 3}},
        {"use_dora": True, "use_rslora": True, "rank_pattern": {"q": 2}},
    ],
    ids=str,
)
@pytest.mark.parametrize("cached", [1, 7 * 24, 1 << 18], ids=lambda cached: f"{cached} weights at a time")
def test_each_weight_is_what_peft_merges(
    settings: dict[str, Any], cached: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CACHED", cached)
    base, merged = saved(tmp_path, **settings)
    deltas = Deltas(tmp_path, Small().to("meta"), None)
    assert deltas.touched == deltas.merged == {name for name, _ in base.named_parameters() if name.endswith("weight")}
    for name, weight in base.named_parameters():
        found = deltas.apply(name, weight.data, FP32)
        assert torch.allclose(found, merged.get_parameter(name), atol=1e-6)
        assert torch.equal(found, weight) is (name not in deltas.merged)


def test_only_one_rounding_lies_between_the_sum_and_the_file(tmp_path: Path) -> None:
    base, _ = saved(tmp_path)
    name = "layers.0.q.weight"
    half = base.get_parameter(name).data.to(torch.bfloat16)
    deltas = Deltas(tmp_path, Small().to("meta"), None)
    state = load_file(tmp_path / WEIGHTS)
    update = (
        state["base_model.model.layers.0.q.lora_B.weight"] @ state["base_model.model.layers.0.q.lora_A.weight"] * 1.5
    )
    assert torch.allclose(deltas.apply(name, half, FP32), half.float() + update, atol=1e-6)


def test_a_result_that_is_no_number_is_refused(tmp_path: Path) -> None:
    base, _ = saved(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    state["base_model.model.layers.0.q.lora_B.weight"][0, 0] = float("inf")
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="A023"):
        Deltas(tmp_path, Small().to("meta"), None).apply(
            "layers.0.q.weight", base.get_parameter("layers.0.q.weight"), FP32
        )


def test_into_the_base_as_trained_a_weight_is_quantised_first(tmp_path: Path) -> None:
    base, _ = saved(tmp_path)
    name = "layers.0.q.weight"
    weight = base.get_parameter(name).data
    trained = Deltas(tmp_path, Small().to("meta"), AsTrained(torch.float32, "nf4", frozenset({name})))
    original = Deltas(tmp_path, Small().to("meta"), None)
    moved = trained.apply(name, weight, FP32) - original.apply(name, weight, FP32)
    assert torch.allclose(moved, requantised(weight, "nf4", torch.float32) - weight, atol=1e-6)
    assert moved.abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "steps"), [("nf4", 16), ("fp4", 16), ("int8", 255)])
def test_quantised_values_are_few(kind: Any, steps: int) -> None:
    torch.manual_seed(0)
    row = requantised(torch.randn(1, 64), kind, torch.float32)
    assert 8 < len(row.unique()) <= steps


def test_what_is_not_touched_is_held_as_the_run_held_it(tmp_path: Path) -> None:
    saved(tmp_path)
    held = AsTrained(torch.bfloat16, "none", frozenset())
    bias = torch.randn(16)
    assert torch.equal(
        Deltas(tmp_path, Small().to("meta"), held).apply("layers.0.q.bias", bias, torch.bfloat16), bias.bfloat16()
    )
    count = torch.arange(3)
    assert torch.equal(Deltas(tmp_path, Small().to("meta"), held).apply("positions", count, torch.int64), count)


def test_layers_that_are_stored_transposed_are_quantised_as_the_loader_does(tmp_path: Path) -> None:
    saved(tmp_path / "adapter")
    small = GPT2Config(vocab_size=64, n_positions=16, n_embd=64, n_layer=1, n_head=2)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(small)
    model.save_pretrained(tmp_path / "base")
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    loaded: Any = GPT2LMHeadModel.from_pretrained(tmp_path / "base", quantization_config=four_bits, dtype=FP32)
    name = "transformer.h.0.mlp.c_fc.weight"
    stored = loaded.transformer.h[0].mlp.c_fc.weight
    expected = functional.dequantize_4bit(stored.data, stored.quant_state).T
    weight = model.get_parameter(name).data
    deltas = Deltas(tmp_path / "adapter", Both(model.to("meta")), AsTrained(FP32, "nf4", frozenset({f"gpt.{name}"})))
    assert torch.equal(deltas.apply(f"gpt.{name}", weight, FP32), expected)


def of(run: TinyRun, *overrides: str) -> Manifest:
    return manifest(recipe=run.recipe(*overrides).recipe)


def test_quantised_weights_are_those_that_the_loader_quantises(tmp_path: Path) -> None:
    made = of(TinyRun.make(tmp_path), "base.quantize=nf4")
    base = Base.resolve(made.recipe.base)
    model = base.load(Precision("cpu", "fp32"), seed=0)
    real = {name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    assert AsTrained.of(made, base).quantised == {f"{name}.weight" for name in real}
    assert real


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_without_quantisation_only_the_precision_is_left(precision: str, tmp_path: Path) -> None:
    made = of(TinyRun.make(tmp_path)).model_copy(update={"precision": precision})
    stored = AsTrained.of(made, Base.resolve(made.recipe.base))
    assert (stored.kind, stored.quantised) == ("none", frozenset())
    assert str(stored.dtype).endswith({"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[precision])
