"""Where parts are found in models that keep them in unusual places, and where LoRA goes there."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForImageTextToText

from qlmm.core.errors import ModelError
from qlmm.model.inspection.memory import trained_sizes
from qlmm.model.numerics.quantization import check_experts, skip_names
from qlmm.model.parts.experts import fused_experts, routers
from qlmm.model.parts.known_names import CONNECTOR_IN_TOWER, CROSS_ATTENTION, OTHER, UNSPLIT
from qlmm.model.parts.split import Parts, linear_names, split
from qlmm.model.peft.adapter import Placement, attach, fill_bare, place, rehearse, save_adapter
from qlmm.recipe.schema import AdapterSection
from tests.families.build import NotOffline, family, names, tiny_model


def parts_of(name: str) -> tuple[nn.Module, Parts]:
    """A tiny model and its parts."""
    model = tiny_model(family(name))
    return model, split(model)


def test_a_merger_inside_the_tower_is_the_connector() -> None:
    model, parts = parts_of("qwen3_vl")
    assert parts.vision == ("model.visual",)
    assert parts.connector == ("model.visual.merger", "model.visual.deepstack_merger_list")
    assert parts.of("model.visual.merger.linear_fc1.weight") == "connector"
    assert parts.of("model.visual.blocks.0.attn.qkv.weight") == "vision"
    placement = place(model, parts, AdapterSection())  # type: ignore[arg-type]  # a transformers model
    assert placement.whole == ("model.visual.merger", "model.visual.deepstack_merger_list.0")


def test_a_tower_trained_whole_leaves_its_merger_to_the_connector() -> None:
    model, parts = parts_of("qwen2_5_vl")
    placement = place(model, parts, AdapterSection(vision="full"))  # type: ignore[arg-type]  # a transformers model
    assert "model.visual.merger" in placement.whole
    assert {"model.visual.blocks.0", "model.visual.patch_embed"} <= set(placement.whole)
    assert not any(name.startswith("model.visual.merger.") for name in placement.whole)
    wrapped = attach(model, placement, AdapterSection(vision="full"), seed=0)  # type: ignore[arg-type]  # as above
    trained = {parts.of(name) for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert trained == {"vision", "connector", "language"}


def test_cross_attention_layers_of_the_decoder_are_the_connector() -> None:
    model, parts = parts_of("mllama")
    layers = [name for name in parts.connector if ".layers." in name]
    assert layers
    assert all("cross_attn" in dict(model.get_submodule(name).named_children()) for name in layers)
    placement = place(model, parts, AdapterSection(connector="lora", dropout=0.0))  # type: ignore[arg-type]
    assert {parts.of(name) for name in placement.lora} == {"language", "connector"}
    frozen = place(model, parts, AdapterSection(connector="frozen"))  # type: ignore[arg-type]
    assert not any(name.startswith(f"{layer}.") for name in frozen.lora for layer in layers)


@pytest.mark.parametrize(
    ("name", "bare"), [("llava_next", "model.image_newline"), ("blip-2", "query_tokens"), ("deepseek_ocr2", None)]
)
def test_a_parameter_without_a_module_is_trained_and_stored_under_its_own_name(
    name: str, bare: str | None, tmp_path: Path
) -> None:
    model, parts = parts_of(name)
    bare = bare or parts.bare[0]
    assert parts.bare == (bare,)
    section = AdapterSection(dropout=0.0)
    placement = place(model, parts, section)  # type: ignore[arg-type]  # a transformers model
    wrapped = attach(model.to(torch.bfloat16), placement, section, seed=0)  # type: ignore[arg-type]  # as above
    parameter = wrapped.get_parameter(f"base_model.model.{bare}")
    assert parameter.requires_grad
    assert parameter.dtype == torch.float32
    with torch.no_grad():
        parameter.add_(1.001)
    save_adapter(wrapped, tmp_path, placement.bare)
    fresh = tiny_model(family(name)).to(torch.bfloat16)
    plain = PeftModel.from_pretrained(fresh, str(tmp_path))
    assert torch.equal(plain.get_parameter(f"base_model.model.{bare}"), parameter.to(torch.bfloat16))
    assert fill_bare(plain, tmp_path) == (f"base_model.model.{bare}",)
    assert torch.equal(plain.get_parameter(f"base_model.model.{bare}"), parameter)


def test_frozen_or_lora_connectors_leave_bare_parameters_alone() -> None:
    model, parts = parts_of("llava_next")
    for kind in ("lora", "frozen"):
        assert not place(model, parts, AdapterSection(connector=kind)).bare  # type: ignore[arg-type]


MOE = "qwen3_vl_moe"
# PEFT rewrites the targets of two classes whose checkpoints it converts, and needs text generation for causal models.
REFUSED_BY_PEFT = {"glm4v_moe", "qwen3_omni_moe_thinker", "diffusion_gemma"}


def test_experts_get_lora_on_request_only_and_routers_never() -> None:
    model, parts = parts_of(MOE)
    fused = fused_experts(model, parts)
    assert {name.rsplit(".", 1)[-1] for name in fused} == {"gate_up_proj", "down_proj"}
    plain = place(model, parts, AdapterSection())  # type: ignore[arg-type]  # a transformers model
    assert plain.experts == ()
    assert not any("expert" in name for name in plain.lora)
    section = AdapterSection(targets=("all-linear", "experts"), dropout=0.0)
    asked = place(model, parts, section)  # type: ignore[arg-type]  # as above
    assert asked.experts == fused
    wrapped = attach(model, asked, section, seed=0)  # type: ignore[arg-type]  # as above
    trained = sum(parameter.numel() for parameter in wrapped.parameters() if parameter.requires_grad)
    assert trained == sum(trained_sizes(tiny_model(family(MOE)), asked))


def test_experts_in_4_bit_with_dropout_or_where_there_are_none_are_refused() -> None:
    model, parts = parts_of(MOE)
    with pytest.raises(ModelError, match=r"M035.*fused experts, which are \d+%"):
        check_experts(model, parts, "nf4")  # type: ignore[arg-type]  # a transformers model
    check_experts(model, parts, "none")  # type: ignore[arg-type]  # as above
    with pytest.raises(ModelError, match="dropout"):
        place(model, parts, AdapterSection(targets=("experts",)))  # type: ignore[arg-type]  # as above
    dense, its_parts = parts_of("qwen2_5_vl")
    with pytest.raises(ModelError, match="no experts"):
        place(dense, its_parts, AdapterSection(targets=("experts",)))  # type: ignore[arg-type]  # as above


def _built() -> list[str]:
    found = []
    for name in names():
        try:
            split(tiny_model(family(name)))
        except (NotOffline, ModelError):
            continue
        found.append(name)
    return found


@pytest.mark.parametrize("name", _built())
def test_every_parameter_has_one_part_and_only_the_decoder_is_quantised(name: str) -> None:
    model, parts = parts_of(name)
    assert {parts.of(parameter) for parameter, _ in model.named_parameters()} >= {"language"}
    kept = set(skip_names(model, parts))  # type: ignore[arg-type]  # a transformers model
    linear = {inner for inner, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {parts.of(inner) for inner in linear - kept} == {"language"}
    assert routers(model, parts) <= kept
    assert not set(parts.head) & (linear - kept)


@pytest.mark.parametrize("name", _built())
def test_a_part_is_trained_as_asked_and_no_other_or_it_is_refused(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(family(name).config)
    parts, wrong = split(model), list[str]()
    for part, way in product(("connector", "vision"), ("full", "lora")):
        asked = {"language": "frozen", "connector": "frozen", part: way}
        section = AdapterSection.model_validate(asked | {"dropout": 0.0, "r": 2})
        try:
            wrapped = rehearse(model, place(model, parts, section), section)
        except ModelError as error:
            if not _rightly(error, model, parts, part, way) and name not in REFUSED_BY_PEFT:
                wrong.append(str(error))
            continue
        trained = {parts.of(key) for key, parameter in wrapped.named_parameters() if parameter.requires_grad}
        assert trained == {part} == place(model, parts, section).asked
        assert way == "full" or not any("modules_to_save" in key for key, _ in wrapped.named_parameters())
    assert not wrong


def _rightly(error: ModelError, model: nn.Module, parts: Parts, part: str, way: str) -> bool:
    """Whether a refusal names the key and another way, and the part cannot be trained in this way indeed."""
    (problem,) = error.problems
    if problem.code == "M038":
        return (part, way) == ("vision", "full")
    cannot = not parts.has(part) or (part == "vision" and parts.discrete)  # type: ignore[arg-type]  # a part's name
    cannot = cannot or (way == "lora" and not _linear(model, parts, part))
    named = problem.key == f"adapter.{part}" and f"adapter.{part}=frozen" in str(problem.help)
    return cannot and named and problem.code in ("M037", "M039")


def _linear(model: nn.Module, parts: Parts, part: str) -> bool:
    modules = parts.modules(part)  # type: ignore[arg-type]  # one of the part names
    own = [inner for module in modules for inner in linear_names(model, module) if parts.of(inner) == part]
    return any("head.attention.out_proj" not in inner for inner in own)


def test_what_a_refusal_proposes_is_possible() -> None:
    model, parts = parts_of("gemma3")
    with pytest.raises(ModelError, match=r"M039.*Gemma3ForConditionalGeneration has no linear layer") as caught:
        place(model, parts, AdapterSection(connector="lora"))  # type: ignore[arg-type]  # a transformers model
    assert caught.value.problems[0].help == "set adapter.connector=full or adapter.connector=frozen"
    placement = place(model, parts, AdapterSection(connector="full"))  # type: ignore[arg-type]  # as above
    assert placement.whole == ("model.multi_modal_projector",)


def test_no_row_of_the_tables_is_there_for_nothing() -> None:
    """Every listed name occurs in some class, and every entry says why it is there."""
    tables = (CONNECTOR_IN_TOWER, CROSS_ATTENTION, OTHER)
    assert all(len(why) > 4 for table in tables for why in table.values())
    assert all(len(entry.why) > 20 for entry in UNSPLIT.values())


def test_a_placement_says_what_is_asked() -> None:
    model, parts = parts_of("smolvlm")
    placement: Placement = place(model, parts, AdapterSection(vision="lora"))  # type: ignore[arg-type]
    assert placement.asked == {"vision", "connector", "language"}
