"""Every parameter belongs to exactly one part, by anatomy alone."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlavaForConditionalGeneration

from qlmm.core.errors import ModelError
from qlmm.model.parts.split import Parts, linear_names, split
from tests.tiny import tiny_llava, tiny_processor


@pytest.fixture(scope="module")
def llava() -> LlavaForConditionalGeneration:
    return tiny_llava(tiny_processor())


def test_llava_splits_into_its_four_parts(llava: LlavaForConditionalGeneration) -> None:
    assert split(llava) == Parts(
        vision=("model.vision_tower",),
        connector=("model.multi_modal_projector",),
        language=("model.language_model",),
        head=("lm_head",),
    )


def test_every_parameter_has_a_part_with_and_without_peft_names(llava: LlavaForConditionalGeneration) -> None:
    parts = split(llava)
    for name, _ in llava.named_parameters():
        assert parts.of(name) == parts.of(f"base_model.model.{name}")
    assert (
        parts.of("base_model.model.model.multi_modal_projector.modules_to_save.default.linear_1.weight") == "connector"
    )
    assert (
        parts.of("base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight") == "language"
    )
    with pytest.raises(KeyError):
        parts.of("model.something_else.weight")


def test_a_name_that_only_begins_like_a_part_is_not_in_it(llava: LlavaForConditionalGeneration) -> None:
    with pytest.raises(KeyError):
        split(llava).of("model.vision_tower_2.weight")


def test_split_needs_no_weights() -> None:
    with torch.device("meta"):
        shape = LlavaForConditionalGeneration(tiny_llava(tiny_processor()).config)
    assert split(shape).connector == ("model.multi_modal_projector",)


def test_a_text_only_model_is_refused_with_a_way_out() -> None:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    with pytest.raises(ModelError, match="no image encoder") as caught:
        split(AutoModelForCausalLM.from_config(config))
    assert "base.vision" in str(caught.value)


def test_linear_names_are_full_names_inside_the_module(llava: LlavaForConditionalGeneration) -> None:
    names = linear_names(llava, "model.multi_modal_projector")
    assert names == ["model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"]
