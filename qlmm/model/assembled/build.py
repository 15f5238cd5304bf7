"""Putting a loaded tower, a connector and a loaded language model together, without copying a weight.

Usage:
    facts = vision_facts(vision.config, picture_size(image_processor))
    connector, spec = connector_for("abstractor", {}, facts=facts, text_width=embedding_width(language), seed=0)
    model = assemble(vision, language, connector, assembled_config(vision.config, language, spec, image_token_id))
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedConfig, PreTrainedModel

from qlmm.compat.transformers_private import attention_of
from qlmm.core.errors import ModelError
from qlmm.model.assembled.language import check_same_answers, embedding_width
from qlmm.model.assembled.model import (
    AssembledConfig,
    AssembledForConditionalGeneration,
    ConnectorSpec,
    build_connector,
)
from qlmm.model.assembled.vision import VisionFacts, choose_layer
from qlmm.model.contract import connector as find_connector

__all__ = ["assemble", "assembled_config", "connector_for"]

# What bitsandbytes loading leaves on a model; PEFT, accelerate and the trainer look for it on the outermost one.
_QUANTISATION_MARKS = ("hf_quantizer", "is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "quantization_method")


def connector_for(
    kind: str,
    settings: Mapping[str, Any],
    *,
    facts: VisionFacts,
    text_width: int,
    seed: int,
    vision_layer: int | None = None,
) -> tuple[nn.Module, ConnectorSpec]:
    """A fresh connector in fp32 on the default device, and its record.

    Args:
        kind: its name in a recipe; N001 when it is unknown.
        settings: the recipe's further keys for it; M101 when they are wrong.
        facts: the tower's facts.
        text_width: width D of the language model's embeddings, as ``embedding_width`` gives it.
        seed: decides every random weight; the global generator is left as it was.
        vision_layer: the recipe's choice of a hidden state; M113 when the tower lacks it.
    """
    found = find_connector(kind)
    chosen = found.read(settings)
    skipped = facts.extra_tokens if found.takes == "grid" else 0
    layer = choose_layer(vision_layer, found, facts)
    spec = ConnectorSpec(
        kind=kind,
        settings=chosen.model_dump(),
        vision_width=facts.width,
        text_width=text_width,
        vision_layer=layer,
        final_norm=facts.final_norm if layer is None else None,
        skip_tokens=skipped,
        tokens=found.placeholders(chosen, facts.grid_tokens + facts.extra_tokens - skipped),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_connector(spec), spec


def assembled_config(
    vision: PreTrainedConfig, language: PreTrainedModel, spec: ConnectorSpec, image_token_id: int
) -> LlavaConfig:
    """The configuration of the assembled model, which decides its class; the language model has its image token.

    A plain ``LlavaConfig`` where stock LLaVA code does the same arithmetic: a connector it knows, at most a class
    token to drop, a numbered layer, and a head and embeddings as its class expects them. Else ``AssembledConfig``.
    """
    head = language.get_output_embeddings()
    shared: dict[str, Any] = {
        "vision_config": vision,
        "text_config": language.config,
        "image_token_index": image_token_id,
        "image_seq_length": spec.tokens,
        "tie_word_embeddings": head.weight is language.get_input_embeddings().weight,
        "dtype": language.config.dtype,
        # Without these the new configuration would wipe out how the loaded parts compute attention and experts.
        "attn_implementation": {"": attention_of(language.config)},
        "experts_implementation": {},
    }
    if _stock_llava_can(language, spec):
        return LlavaConfig(
            **shared,
            vision_feature_layer=spec.vision_layer,
            vision_feature_select_strategy="default" if spec.skip_tokens else "full",
            projector_hidden_act="linear" if spec.kind == "linear" else "gelu",
        )
    return AssembledConfig(**shared, connector=spec.model_dump(), lm_head_bias=head.bias is not None)


def _stock_llava_can(language: PreTrainedModel, spec: ConnectorSpec) -> bool:
    """Whether ``LlavaForConditionalGeneration`` computes what the parts ask for, and ties what they tie."""
    head, embeddings = language.get_output_embeddings(), language.get_input_embeddings()
    names = {name.rpartition(".")[2] for name, module in language.named_modules() if module is embeddings}
    tower = find_connector(spec.kind).plain_llava and spec.skip_tokens <= 1 and spec.vision_layer is not None
    text = head.bias is None and embedding_width(language) == language.config.hidden_size
    return tower and text and (head.weight is not embeddings.weight or names == {"embed_tokens"})


def assemble(
    vision: PreTrainedModel, language: PreTrainedModel, connector: nn.Module, config: LlavaConfig
) -> PreTrainedModel:
    """The model of the given parts, in eval mode; they are shared with it, not copied.

    Parts on the meta device give a model to plan with, which is not checked. The configuration is that of
    ``assembled_config`` for these very parts.

    Raises:
        ModelError: M123 when a weight is missing, M122 when text is answered differently than by the language model.
    """
    model = _put_together(vision, language, connector, config)
    if language.device.type != "meta":
        tensors = chain(model.named_parameters(), model.named_buffers())
        missing = [name for name, value in tensors if value.device.type == "meta"]
        if missing:
            raise ModelError.one("M123", f"the assembled model has no weights for {', '.join(missing[:5])}")
        check_same_answers(language, model)
    return model


def _put_together(
    vision: PreTrainedModel, language: PreTrainedModel, connector: nn.Module, config: LlavaConfig
) -> PreTrainedModel:
    """The class is built without weights first, so that its own bookkeeping is right, and then gets the modules."""
    kind = AssembledForConditionalGeneration if isinstance(config, AssembledConfig) else LlavaForConditionalGeneration
    # Building sub-models writes their attention kind into the configuration; the loaded parts keep theirs.
    with torch.device("meta"):
        model: Any = kind(copy.deepcopy(config))
    config.vision_config, config.text_config = vision.config, language.config
    model.config = model.model.config = config
    model.model.vision_tower = vision
    model.model.language_model = language.base_model
    model.model.multi_modal_projector = connector
    model.lm_head = language.get_output_embeddings()
    model.generation_config = language.generation_config
    for mark in _QUANTISATION_MARKS:
        if mark in vars(language):
            setattr(model, mark, vars(language)[mark])
    if (stated := vars(language.config).get("quantization_config")) is not None:
        model.config.quantization_config = stated
    whole: PreTrainedModel = model.eval()
    return whole
