"""LoRA goes where the recipe says and nowhere else; the connector is trained through modules_to_save, in fp32."""

from __future__ import annotations

import copy
import dataclasses
import re

import pytest
import torch
from transformers import LlamaConfig, LlavaForConditionalGeneration

from qlmm.core.errors import ModelError
from qlmm.model.inspection.memory import lora_sizes
from qlmm.model.parts.split import split
from qlmm.model.peft.adapter import attach, check_variant, place
from qlmm.recipe.schema import AdapterSection
from tests.tiny import tiny_llava, tiny_processor


@pytest.fixture(scope="module")
def llava() -> LlavaForConditionalGeneration:
    return tiny_llava(tiny_processor())


def _trainable(model: torch.nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj", "v_proj")])
def test_lora_never_leaks_into_the_tower_or_the_head(
    llava: LlavaForConditionalGeneration, targets: tuple[str, ...]
) -> None:
    parts, section = split(llava), AdapterSection(targets=targets)
    wrapped = attach(copy.deepcopy(llava), place(llava, parts, section), section, seed=0)
    lora = [name for name in _trainable(wrapped) if ".lora_" in name]
    assert lora
    assert {parts.of(name) for name in lora} == {"language"}
    assert {parts.of(name) for name in _trainable(wrapped) if ".lora_" not in name} == {"connector"}


def test_the_pattern_selects_exactly_the_resolved_layers(llava: LlavaForConditionalGeneration) -> None:
    placement = place(llava, split(llava), AdapterSection(targets=("q_proj", "down_proj")))
    matched = {name for name, _ in llava.named_modules() if re.fullmatch(placement.pattern, name)}
    assert matched == set(placement.lora)
    assert placement.endings == {"down_proj": 2, "q_proj": 2}


def test_a_target_that_matches_nothing_is_an_error_that_lists_what_there_is(
    llava: LlavaForConditionalGeneration,
) -> None:
    with pytest.raises(ModelError, match="`q_porj` matches no linear layer") as caught:
        place(llava, split(llava), AdapterSection(targets=("q_porj",)))
    assert "q_proj" in str(caught.value)


def test_a_base_without_a_connector_cannot_be_asked_to_train_only_that(llava: LlavaForConditionalGeneration) -> None:
    bare = dataclasses.replace(split(llava), connector=())
    with pytest.raises(ModelError, match=r"M039.*has no connector of its own to train"):
        place(llava, bare, AdapterSection(language="frozen"))


def test_stage_one_trains_tower_and_connector_without_lora(llava: LlavaForConditionalGeneration) -> None:
    parts, section = split(llava), AdapterSection(language="frozen", vision="full")
    wrapped = attach(copy.deepcopy(llava), place(llava, parts, section), section, seed=0)
    assert {parts.of(name) for name in _trainable(wrapped)} == {"vision", "connector"}


def test_a_carried_part_is_saved_but_not_trained(llava: LlavaForConditionalGeneration) -> None:
    parts, section = split(llava), AdapterSection()
    placement = place(llava, parts, section, earlier=frozenset({"vision", "connector"}))
    wrapped = attach(copy.deepcopy(llava), placement, section, seed=0)
    assert {parts.of(name) for name in _trainable(wrapped)} == {"language", "connector"}
    assert any("vision_tower.modules_to_save" in name for name, _ in wrapped.named_parameters())


def test_trained_weights_are_fp32_on_a_16_bit_base(llava: LlavaForConditionalGeneration) -> None:
    section = AdapterSection()
    base = copy.deepcopy(llava).to(torch.bfloat16)
    wrapped = attach(base, place(base, split(base), section), section, seed=0)
    assert {parameter.dtype for parameter in wrapped.parameters() if parameter.requires_grad} == {torch.float32}


def test_the_same_seed_gives_the_same_bits(llava: LlavaForConditionalGeneration) -> None:
    section = AdapterSection()
    placement = place(llava, split(llava), section)
    first, second = (attach(copy.deepcopy(llava), placement, section, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rank_8_on_q_and_v_of_a_7b_language_model_is_4194304_weights() -> None:
    """The published count of mPLUG-Owl's LoRA."""
    config = tiny_llava(tiny_processor()).config
    config.text_config = LlamaConfig()  # the 7B shape is its default
    with torch.device("meta"):
        shape = LlavaForConditionalGeneration(config)
    placement = place(shape, split(shape), AdapterSection(r=8, targets=("q_proj", "v_proj")))
    assert sum(lora_sizes(shape, placement)) == 4_194_304


@pytest.mark.parametrize("variant", ["pissa", "olora", "loftq"])
def test_initialisations_that_need_plain_weights_are_refused_on_quantised_ones(variant: str) -> None:
    section = AdapterSection(variant=variant)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=variant):
        check_variant(section, "nf4")
    check_variant(section, "none")


@pytest.mark.parametrize("variant", ["plain", "rslora", "dora", "pissa", "olora"])
def test_every_variant_attaches(llava: LlavaForConditionalGeneration, variant: str) -> None:
    section = AdapterSection(variant=variant, r=4)  # type: ignore[arg-type]
    wrapped = attach(copy.deepcopy(llava), place(llava, split(llava), section), section, seed=0)
    assert _trainable(wrapped)
