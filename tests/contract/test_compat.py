"""What qlmm relies on in private names of its dependencies: after an upgrade the failing test says what broke."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import tomllib
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    MixtralConfig,
    PreTrainedModel,
)

from qlmm.compat import (
    accelerate_private,
    bitsandbytes_private,
    efficientnet_private,
    hub_private,
    peft_private,
    transformers_models,
    transformers_private,
    trl_experimental,
    trl_private,
)
from tests.contract.hooks import HOOKS, Hook

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    accelerate_private,
    bitsandbytes_private,
    efficientnet_private,
    hub_private,
    peft_private,
    transformers_models,
    transformers_private,
    trl_experimental,
    trl_private,
)
NAMES = [(module, name) for module in MODULES for name in module.__all__]
RELEASE = re.compile(r"Read\s+from\s+([\w-]+)\s+(\d+\.\d+)")
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 40,
}


def tiny(**settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES), **settings)
    return model


# ---- What is written about each name


def said_of(module: types.ModuleType, name: str) -> str:
    """A function's docstring, or the paragraph about a name in its module's."""
    found = vars(module)[name]
    if inspect.isfunction(found) and found.__module__ == module.__name__:
        return found.__doc__ or ""
    paragraphs = re.split(r"\n\* |\n\n", module.__doc__ or "")
    return next((one for one in paragraphs if f"``{name}``" in one.partition(": ")[0]), "")


def pins() -> dict[str, str]:
    """The minor release that pyproject.toml holds each dependency to."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["quickstart"]]
    found = (re.match(r"([\w-]+)[>=]=(\d+\.\d+)", one) for one in wanted)
    return {match[1].lower().replace("-", "_"): match[2] for match in found if match}


@pytest.mark.parametrize(("module", "name"), NAMES, ids=lambda one: one if isinstance(one, str) else "")
def test_every_name_has_its_release_and_its_public_replacement(module: types.ModuleType, name: str) -> None:
    said = said_of(module, name)
    release = RELEASE.search(said)
    assert release, "which release was it read from?"
    assert "Public instead:" in " ".join(said.split())
    library = release[1].lower().replace("-", "_")
    assert pins()[library] == release[2], "the pin moved: read the new release, then change the docstring"
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_compat*.py"))
    assert re.search(rf"\b{name}\b", tests), "no contract test"


@pytest.mark.parametrize("library", ["transformers", "trl", "peft", "bitsandbytes", "accelerate", "huggingface-hub"])
def test_libraries_with_private_names_are_pinned_to_a_minor(library: str) -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    (pin,) = [one for one in wanted if re.match(rf"{library}\b", one)]
    match = re.fullmatch(r"[\w-]+>=(\d+)\.(\d+),<(\d+)\.(\d+)", pin)
    assert match
    assert (match[1], int(match[2]) + 1) == (match[3], int(match[4]))


def test_the_versions_that_are_tested_are_those_that_may_be_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [one for several in project["optional-dependencies"].values() for one in several]
    wanted = [Requirement(one) for one in (*project["dependencies"], *extras)]
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line]
    tested = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    outside = [str(one) for one in wanted if tested.get(canonicalize_name(one.name), "") not in one.specifier]
    assert [one for one in outside if not one.startswith(("qlmm", "torchvision"))] == []


# ---- Methods that subclasses override


def dependency(path: str) -> type[Any]:
    module, _, name = path.rpartition(".")
    found: type[Any] = vars(importlib.import_module(module)).get(name) or getattr(importlib.import_module(module), name)
    return found


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: f"{hook.owner}.{hook.name}")
def test_a_hook_is_still_there_with_the_same_arguments(hook: Hook) -> None:
    owner = dependency(hook.owner)
    if hook.takes is None:
        assert any(hook.name in read for _, read in code_of(owner)), f"{hook.owner} does not read {hook.name} any more"
    else:
        arguments = tuple(inspect.signature(getattr(owner, hook.name)).parameters)[1:]
        assert arguments == hook.takes, f"{hook.owner}.{hook.name} takes other arguments"
    assert hook.why


def code_of(kind: type[Any]) -> Iterator[tuple[type[Any], set[str]]]:
    """For each class that a class rests on: the names of attributes that its methods use."""
    for one in kind.__mro__:
        functions = [getattr(value, "__func__", value) for value in vars(one).values()]
        functions += [value.fget for value in vars(one).values() if isinstance(value, property) and value.fget]
        names: set[str] = set()
        for function in functions:
            inner = inspect.unwrap(function) if callable(function) else function
            if inspect.isfunction(inner):
                names |= names_in(inner.__code__)
        yield one, names


def names_in(code: types.CodeType) -> set[str]:
    inner = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return set(code.co_names).union(*map(names_in, inner))


def subclasses() -> list[type[Any]]:
    """Classes of qlmm that rest on a model, processor or trainer of a dependency."""
    found = set()
    for path in sorted((ROOT / "qlmm").rglob("*.py")):
        if path.stem.startswith("__") or path.parent.name == "compat":
            continue
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__ == module.__name__ and foreign(kind):
                found.add(kind)
    return sorted(found, key=lambda kind: kind.__qualname__)


def foreign(kind: type[Any]) -> list[type[Any]]:
    libraries = {"transformers", "trl", "peft"}
    return [one for one in kind.__mro__ if one.__module__.partition(".")[0] in libraries]


def private_names(kind: type[Any]) -> set[str]:
    """Private names that the source of our own classes among a class's bases defines, or sets on ``self``."""
    found: set[str] = set()
    for one in kind.__mro__:
        if one.__module__.startswith("qlmm."):
            source = inspect.getsource(one)
            # Libraries leave notes of their own on a class, too.
            found |= {name for name in vars(one) if re.search(rf"\b{name}\b", source)}
            found |= set(re.findall(r"self\.(_\w+)\b(?=[^=\n(]*= )", source))
    return {name for name in found if re.match(r"_[a-z]", name)}


def test_no_other_private_method_or_attribute_of_a_dependency_is_replaced() -> None:
    listed = {hook.name for hook in HOOKS}
    kinds = subclasses()
    assert {"SftTrainer", "DpoTrainer", "AssembledProcessor"} <= {kind.__name__ for kind in kinds}
    met: set[str] = set()
    for kind in kinds:
        theirs = {name for one in foreign(kind) for name in vars(one)}
        theirs |= {name for one, names in code_of(kind) if one in foreign(kind) for name in names}
        met |= private_names(kind) & theirs
    assert met - listed == set(), "list it in tests/contract/hooks.py with the reason, or give ours another name"
    assert {name for name in listed if name.startswith("_")} - met == set(), "listed, but not replaced any more"


# ---- transformers


def test_the_kind_of_attention_is_the_one_asked_for() -> None:
    for kind in ("eager", "sdpa"):
        assert transformers_private.attention_of(tiny(attn_implementation=kind).config) == kind


def test_lasting_facts_are_the_same_under_another_name_and_hold_no_private_key() -> None:
    one, other = LlamaConfig(**SIZES), LlamaConfig(**SIZES, name_or_path="elsewhere", dtype="float16")
    facts = transformers_private.lasting_facts(one)
    assert facts == transformers_private.lasting_facts(other)
    assert facts["hidden_size"] == 16
    assert not [key for key in facts if key.startswith("_")]


def test_a_processor_says_how_many_tokens_a_picture_takes() -> None:
    class Answering:
        def _get_num_multimodal_tokens(self, image_sizes: Any = None) -> transformers_models.MultiModalData:
            return transformers_models.MultiModalData(num_image_tokens=[h * w for h, w in image_sizes])

    assert transformers_private.picture_tokens(Answering(), 3, 5) == 15
    llava = dependency("transformers.LlavaProcessor")
    code = inspect.getsource(llava._get_num_multimodal_tokens)
    assert re.search(r"MultiModalData\(", code), "processors answer in another type"


def test_a_file_is_found_or_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert transformers_private.fetched_file(str(tmp_path), "config.json", None) == tmp_path / "config.json"
    assert transformers_private.fetched_file(str(tmp_path), "absent.json", None) is None


def test_a_rendered_chat_has_the_spans_of_its_answers() -> None:
    template = "{% for m in messages %}Q{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    texts, spans = transformers_private.render_jinja_template(
        conversations=[[{"role": "assistant", "content": "yes"}]],
        chat_template=template,
        return_assistant_tokens_mask=True,
    )
    assert texts == ["Qyes"]
    assert [tuple(one) for one in spans[0]] == [(1, 4)]


def test_kinds_of_models_are_known_by_their_configuration() -> None:
    assert "llama" in transformers_models.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert "llava" in transformers_models.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    assert "llama" not in transformers_models.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def test_the_projector_of_llava_is_two_linear_layers() -> None:
    vision = CLIPVisionConfig(hidden_size=8, num_attention_heads=1)
    projector = transformers_models.LlavaMultiModalProjector(
        LlavaConfig(vision_config=vision, text_config=LlamaConfig(**SIZES))
    )
    assert {name: tuple(value.shape) for name, value in projector.named_parameters()} == {
        "linear_1.weight": (16, 8),
        "linear_1.bias": (16,),
        "linear_2.weight": (16, 16),
        "linear_2.bias": (16,),
    }


def test_experts_kept_one_by_one_are_put_together_and_taken_apart() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(MixtralConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1))
    rules = transformers_models.get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, transformers_models.WeightRenaming)]
    converters = [rule for rule in rules if rule not in renamings]
    key = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    name, pattern = transformers_models.rename_source_key(
        key, renamings, converters, model.base_model_prefix, model.state_dict()
    )
    assert name == "model.layers.0.mlp.experts.gate_up_proj"
    (converter,) = [rule for rule in converters if pattern in rule.source_patterns]
    back, _ = converter.reverse_transform().rename_source_key(name)
    assert transformers_models.apply_renamings(key, renamings).partition("experts")[0] == back.partition("experts")[0]
    assert sorted(["e.10.w", "e.2.w"], key=transformers_models.dot_natural_key) == ["e.2.w", "e.10.w"]


# ---- TRL


def test_the_fused_head_gives_log_probabilities_of_labels() -> None:
    model = tiny()
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1]
        expected = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        trl_private.add_fused_lm_head(model, outputs=("log_probs", "mean_logits"))
        said = model(input_ids=ids, labels=ids, fused_lm_head=True, use_cache=False)
    assert isinstance(said, trl_private.FusedCausalLMOutput)
    torch.testing.assert_close(said.log_probs, expected)
    torch.testing.assert_close(said.mean_logits, logits.mean(-1))
    assert said.label_mask.all()


def test_inputs_are_prepared_as_for_a_training_step(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    trainer = Trainer(tiny(), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    batch = {"input_ids": torch.tensor([[1, 2]])}
    assert trl_private.prepared_inputs(trainer, batch)["input_ids"].tolist() == [[1, 2]]


def test_experimental_trainers_come_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "trl.experimental")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        importlib.reload(trl_experimental)
    assert not [one for one in heard if "experimental" in str(one.message)]
    for trainer, config in (("CPOTrainer", "CPOConfig"), ("ORPOTrainer", "ORPOConfig")):
        fields = inspect.signature(vars(trl_experimental)[config]).parameters
        assert {"beta", "max_steps"} <= set(fields)
        assert {"concatenated_forward", "get_batch_loss_metrics"} <= set(dir(vars(trl_experimental)[trainer]))
    assert {"loss_type", "cpo_alpha", "simpo_gamma"} <= set(inspect.signature(trl_experimental.CPOConfig).parameters)


# ---- PEFT


def test_a_dummy_target_adapts_no_layer() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=peft_private.DUMMY_TARGET_MODULES, modules_to_save=["lm_head"])
    model = get_peft_model(tiny(), config)
    assert not [name for name, _ in model.named_parameters() if ".lora_" in name]
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "base_model.model.lm_head.modules_to_save.default.weight"
    }


def test_a_lora_layer_merges_alone_and_forgets_it() -> None:
    from peft import LoraConfig, LoraModel

    tree = nn.Module()
    tree.add_module("up", nn.Linear(4, 6))
    LoraModel(tree, LoraConfig(target_modules={"up"}, r=2, init_lora_weights=False), "default")
    layer = tree.get_submodule("up")
    assert isinstance(layer, peft_private.Linear)
    assert isinstance(layer, peft_private.LoraLayer)
    assert layer.lora_B["default"].weight.shape == (6, 2)
    before = layer.get_base_layer().weight.clone()
    layer.merge()
    assert not torch.equal(layer.get_base_layer().weight, before)
    assert layer.merged_adapters == ["default"]
    assert "default" not in layer.lora_magnitude_vector


def test_a_bare_parameter_is_adapted_under_its_name() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=[], target_parameters=["self_attn.q_proj.weight"], lora_dropout=0.0)
    model = get_peft_model(tiny(), config)
    (wrapper,) = [module for module in model.modules() if isinstance(module, peft_private.ParamWrapper)]
    assert wrapper.parameter_name == "weight"


def test_ties_prunes_elects_a_sign_and_averages_what_agrees() -> None:
    first, second = torch.tensor([4.0, -3.0, 0.1, 0.2]), torch.tensor([2.0, 5.0, 0.3, 0.1])
    merged = peft_private.ties([first, second], torch.tensor([1.0, 1.0]), 0.5)
    assert merged.tolist() == [3.0, 5.0, 0.0, 0.0]


# ---- bitsandbytes, huggingface_hub, efficientnet-lite-pytorch


def test_a_quantised_weight_has_its_state_and_is_not_repacked() -> None:
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(64, 64, quant_type="nf4").to("cpu")
    assert "support_avx512bf16_for_cpu" in vars(layer), "what keeps a layer from being repacked has another name"
    bitsandbytes_private.never_repack(layer)
    assert layer.support_avx512bf16_for_cpu is False
    assert bitsandbytes_private.quant_state(layer.weight).quant_type == "nf4"
    assert bitsandbytes_private.quant_state(nn.Parameter(torch.zeros(1))) is None


def test_xet_is_off_for_a_while() -> None:
    from huggingface_hub import constants, file_download

    before = constants.HF_HUB_DISABLE_XET
    with hub_private.without_xet():
        assert constants.HF_HUB_DISABLE_XET is True
    assert before == constants.HF_HUB_DISABLE_XET
    assert "constants.HF_HUB_DISABLE_XET" in inspect.getsource(file_download), "downloads do not ask for it any more"


def test_the_first_and_the_last_layer_of_the_packaged_tower_are_found() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    network = efficientnet_private.without_classifier(package.EfficientNet.from_name("efficientnet-lite0"))
    assert efficientnet_private.first_layer(network).in_channels == 3
    assert not [name for name, value in network.named_parameters() if value.shape[0] == 1000]
