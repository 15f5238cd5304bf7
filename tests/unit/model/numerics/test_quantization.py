"""Only the language model's linear layers are quantised, and training reaches the connector through them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from qlmm.model.numerics.quantization import keep_trainable, quantization, skip_names
from qlmm.model.parts.split import linear_names, split
from tests.tiny import tiny_llava, tiny_processor


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llava")
    tiny_llava(tiny_processor()).save_pretrained(folder)
    return folder


def storage_of(parameter: torch.nn.Parameter) -> str:
    state = vars(parameter).get("quant_state")
    return str(state.quant_type) if state else {torch.int8: "int8", torch.float32: "fp32"}[parameter.dtype]


def _load(saved: Path, kind: str) -> LlavaForConditionalGeneration:
    shape = tiny_llava(tiny_processor())
    keep = skip_names(shape, split(shape))
    settings = quantization(kind, keep=keep, compute=torch.float32)  # type: ignore[arg-type]
    return LlavaForConditionalGeneration.from_pretrained(saved, dtype=torch.float32, quantization_config=settings)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_only_the_language_models_linear_layers_are_quantised(saved: Path, kind: str) -> None:
    model = _load(saved, kind)
    parts = split(model)
    linear = {f"{name}.weight" for name in linear_names(model, parts.language[0])}
    stored = {name: storage_of(parameter) for name, parameter in model.named_parameters()}
    assert {name for name, storage in stored.items() if storage == kind} == linear
    assert {storage for name, storage in stored.items() if name not in linear} == {"fp32"}


def test_an_evaluation_before_training_leaves_a_backward_pass(saved: Path) -> None:
    """bitsandbytes repacks 4-bit weights for CPU inference at the first evaluation and then passes no gradient on."""
    model = _load(saved, "nf4")
    keep_trainable(model)
    ids = torch.tensor([[1, 5, 7, 9]])
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    model.train()
    model(inputs_embeds=embeddings).logits.sum().backward()
    assert embeddings.grad is not None
    # The residual stream alone would carry a gradient too, but one without the layers' share.
    assert not torch.allclose(embeddings.grad[0, 0], embeddings.grad[0, -1], atol=1e-6)
    assert {storage_of(p) for n, p in model.named_parameters() if n.endswith("q_proj.weight") and "language" in n} == {
        "nf4"
    }
    attention = model.model.language_model.layers[0].self_attn.q_proj
    assert not attention.weight.quant_state.__dict__.get("packing_format_for_cpu", False)
