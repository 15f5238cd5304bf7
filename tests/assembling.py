"""Tiny random parts of every kind, and models assembled from them, for tests.

Usage: ``built = build("abstractor", "clip"); built.model(**built.batch("<image> what?", pictures(1)))``
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    LlamaConfig,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    ViTConfig,
    ViTImageProcessorPil,
)

from qlmm.core.naming import names
from qlmm.model.assembled.build import assemble, assembled_config, connector_for
from qlmm.model.assembled.language import add_image_token, embedding_width
from qlmm.model.assembled.model import ConnectorSpec
from qlmm.model.assembled.processor import assembled_processor
from qlmm.model.assembled.vision import VisionFacts, picture_size, prepared, vision_facts, vision_half
from qlmm.model.contract import TOWERS, connector, own_tower
from qlmm.model.loading.hub import config_of, locate
from tests.tiny import template, tiny_tokenizer

SIDE, PATCH = 28, 14
SQUARE = {"height": SIDE, "width": SIDE}
STOCK_TOWERS = ("clip", "siglip", "dinov2", "registers", "vit")
ALL_TOWERS = (*STOCK_TOWERS, *names(TOWERS))
# Class and register tokens that each kind puts before its grid.
EXTRA = {"clip": 1, "siglip": 0, "dinov2": 1, "registers": 5, "vit": 1, "efficientnet_lite0": 0}

_SMALL: dict[str, dict[str, Any]] = {"abstractor": {"queries": 5, "layers": 2, "heads": 4, "inner": 48}}


def stored_config(folder: Path) -> PreTrainedConfig:
    """The tower's configuration in a folder, as a base reads it."""
    return vision_half(config_of(locate(str(folder)), "base.vision"), str(folder))


def tower_config(kind: str) -> PreTrainedConfig:
    """A tower of 3 layers of width 32 and 2 x 2 patches; towers of our own have one size."""
    own = own_tower(kind)
    if own is not None:
        return own.config()
    plain = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes = {"image_size": SIDE, "patch_size": PATCH}
    if kind == "dinov2":
        return Dinov2Config(**plain, **sizes)
    if kind == "registers":
        return Dinov2WithRegistersConfig(**plain, **sizes, num_register_tokens=4)
    classes = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig, "vit": ViTConfig}
    return classes[kind](**plain, **sizes, intermediate_size=64)


def image_processor(kind: str) -> Any:
    """The image processor that checkpoints of this kind come with, at the tiny size."""
    own = own_tower(kind)
    if own is not None:
        return own.image_processor()
    if kind == "siglip":
        return SiglipImageProcessorPil(size=SQUARE)
    if kind == "vit":
        return ViTImageProcessorPil(size=SQUARE)
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE)


def tower(kind: str, seed: int = 0) -> PreTrainedModel:
    """A random tower, frozen."""
    torch.manual_seed(seed)
    return AutoModel.from_config(tower_config(kind)).eval().requires_grad_(False)


def llama(vocabulary: int, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random language model: 2 layers of width 64."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(seed)
    config = LlamaConfig(
        **(sizes | {"vocab_size": vocabulary, "initializer_range": 0.3, "eos_token_id": None} | changes)
    )
    return AutoModelForCausalLM.from_config(config).eval()


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """Noise pictures of different shapes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(37 + 8 * i, 61 - 5 * i) for i in range(count)]
    noise = [torch.randint(0, 256, (height, width, 3), generator=generator) for width, height in sizes]
    return [Image.fromarray(values.to(torch.uint8).numpy()) for values in noise]


@dataclass(frozen=True)
class Built:
    """An assembled model and everything around it."""

    model: PreTrainedModel
    processor: LlavaProcessor
    spec: ConnectorSpec
    facts: VisionFacts
    language: PreTrainedModel
    image_token_id: int

    def batch(self, text: str | list[str], images: list[Image.Image] | None = None) -> dict[str, torch.Tensor]:
        """Model inputs."""
        return dict(self.processor(images=images or None, text=text, return_tensors="pt", padding=True))


def settings_for(kind: str, width: int) -> dict[str, Any]:
    """Small settings for a connector; wide towers get a narrower connector where it has the key."""
    small = dict(_SMALL.get(kind, {}))
    if width > 64 and "hidden" in connector(kind).settings.model_fields:
        small["hidden"] = 32
    return small


def build(kind: str, tower_kind: str, *, vision_layer: int | None = None) -> Built:
    """Assemble random parts the way a recipe's base is."""
    tokenizer = tiny_tokenizer()
    vision, language = tower(tower_kind), llama(300)
    image_token_id = add_image_token(tokenizer, language)
    prepare = prepared(image_processor(tower_kind), connector(kind).fit)
    facts = vision_facts(vision.config, picture_size(prepare))
    module, spec = connector_for(
        kind,
        settings_for(kind, facts.width),
        facts=facts,
        text_width=embedding_width(language),
        seed=0,
        vision_layer=vision_layer,
    )
    config = assembled_config(vision.config, language, spec, image_token_id)
    model = assemble(vision, language, module, config)
    processor = assembled_processor(prepare, tokenizer, config=config, facts=facts)
    processor.chat_template = template("chatml")
    return Built(model, processor, spec, facts, language, image_token_id)
