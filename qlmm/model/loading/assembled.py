"""An assembled base: a tower, a fresh connector and a language model, each from its own place.

Usage: ``source = AssembledSource.read(recipe.base)``
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from qlmm.model.assembled.build import assemble, assembled_config, connector_for, put_together
from qlmm.model.assembled.config import ConnectorSpec
from qlmm.model.assembled.language import add_image_token, check_language, embedding_width
from qlmm.model.assembled.processor import assembled_processor, load_processor
from qlmm.model.assembled.vision import VisionFacts, picture_size, prepared, vision_facts, vision_half
from qlmm.model.contract import connector as find_connector
from qlmm.model.loading.connector_weights import begin, check_fits, take_over, weights_identity
from qlmm.model.loading.hub import Located, config_of, locate_part, pinned, reading
from qlmm.model.loading.identity import BaseIdentity, PartIdentity, Role
from qlmm.model.loading.source import Blueprint, part_identity, read_quantised
from qlmm.model.numerics.precision import Precision
from qlmm.model.numerics.quantization import QuantKind
from qlmm.model.parts.split import split
from qlmm.recipe.schema import BaseSection, ConnectorSection

__all__ = ["AssembledSource"]

_VISION, _LANGUAGE = "base.vision", "base.language"


@dataclass(frozen=True)
class AssembledSource:
    """Configurations, tokenizer and image processor of the parts.

    Attributes:
        connector: the recipe's section, with the settings of its published weights.
        vision_layer: the recipe's choice of a hidden state.
        facts: what the tower makes of a picture.
        image_processor: the tower's, prepared for this connector.
        tokenizer: the language model's; it gets the token that marks a picture's place.
    """

    places: dict[Role, Located]
    identity: BaseIdentity
    connector: ConnectorSection
    vision_layer: int | None
    vision_config: PreTrainedConfig
    facts: VisionFacts
    image_processor: BaseImageProcessor
    language_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    speaks: Role = "language"
    answers_in_decoder: bool = False

    @classmethod
    def read(cls, section: BaseSection) -> AssembledSource:
        """Read everything but weights, each part checked before the next is read.

        Raises:
            UsageError: N001 for an unknown connector.
            ModelError: M003 and following for parts that cannot be had, M101 and following for those that do not fit.
        """
        if section.vision is None or section.language is None or section.connector is None:
            raise ValueError("the recipe's schema lets only whole bases through")
        wanted, connector = find_connector(section.connector.kind), take_over(section.connector)
        vision = locate_part(section.vision, "vision")
        seen = config_of(vision, _VISION)
        half, vision = vision_half(seen, section.vision), pinned(vision)
        with reading(_VISION, vision):
            pictures = AutoImageProcessor.from_pretrained(vision.path, **vision.options)
        language = locate_part(section.language, "language")
        spoken = config_of(language, _LANGUAGE)
        check_language(spoken, section.language)
        language = pinned(language)
        with reading(_LANGUAGE, language):
            tokenizer = AutoTokenizer.from_pretrained(language.path, **language.options)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        pictures = prepared(pictures, wanted.fit)
        parts: dict[Role, PartIdentity] = {
            "vision": part_identity(vision, seen),
            "language": part_identity(language, spoken),
        }
        if (weights := weights_identity(connector)) is not None:
            parts["connector"] = weights
        return cls(
            places={"vision": vision, "language": language},
            identity=BaseIdentity(kind="assembled", parts=parts, connector=connector),
            connector=connector,
            vision_layer=section.vision_layer,
            vision_config=half,
            facts=vision_facts(half, picture_size(pictures)),
            image_processor=pictures,
            language_config=spoken,
            tokenizer=tokenizer,
        )

    @cached_property
    def shape(self) -> Blueprint:
        """The parts put together on the meta device."""
        with torch.device("meta"):
            tower = AutoModel.from_config(copy.deepcopy(self.vision_config))
            connector, spec = self._fresh_connector(self._language_shape, seed=0)
            check_fits(self.connector, connector)
            model = self._joined(tower, self._language_shape, (connector, spec))
        return Blueprint(model, split(model))

    @cached_property
    def processor(self) -> ProcessorMixin:
        """The tower's image processor and the language model's tokenizer, joined."""
        with torch.device("meta"):
            _, spec = self._fresh_connector(self._language_shape, seed=0)
        image_token_id = add_image_token(self.tokenizer, self._language_shape)
        config = assembled_config(copy.deepcopy(self.vision_config), self._language_shape, spec, image_token_id)
        return assembled_processor(self.image_processor, self.tokenizer, config=config, facts=self.facts)

    @cached_property
    def unquantised(self) -> frozenset[str]:
        """Everything outside the language model, which is quantised before it is put in place."""
        linear = (name for name, module in self.shape.model.named_modules() if isinstance(module, nn.Linear))
        return frozenset(name for name in linear if self.shape.parts.of(name) != "language")

    def saved_processor(self, folder: Path) -> ProcessorMixin:
        """A processor that was saved with an adapter."""
        return load_processor(folder)

    def load(self, precision: Precision, quantize: QuantKind, seed: int) -> PreTrainedModel:
        """Tower and language model with their weights, and a connector that the seed decides."""
        vision = self.places["vision"]
        with reading(_VISION, vision):
            config = copy.deepcopy(self.vision_config)
            tower = AutoModel.from_pretrained(vision.path, config=config, dtype=precision.compute, **vision.options)
        language = self._load_language(precision, quantize)
        connector, spec = self._fresh_connector(language, seed=seed)
        begin(self.connector, connector, language)
        return self._joined(tower.to(precision.device), language, (connector.to(language.device), spec))

    def _load_language(self, precision: Precision, quantize: QuantKind) -> PreTrainedModel:
        head = self._language_shape.get_output_embeddings()
        keep = [name for name, module in self._language_shape.named_modules() if module is head]
        place, config = self.places["language"], self.language_config
        language = read_quantised(AutoModelForCausalLM, place, config, precision, quantize, keep)
        add_image_token(self.tokenizer, language)
        return language

    @cached_property
    def _language_shape(self) -> PreTrainedModel:
        """The language model on the meta device, grown by the picture's token."""
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(self.language_config))
            add_image_token(self.tokenizer, model)
        return model

    def _fresh_connector(self, language: PreTrainedModel, *, seed: int) -> tuple[nn.Module, ConnectorSpec]:
        """A connector for this tower and this language model, before any published weights, and its record."""
        return connector_for(
            self.connector.kind,
            self.connector.settings,
            facts=self.facts,
            text_width=embedding_width(language),
            seed=seed,
            vision_layer=self.vision_layer,
        )

    def _joined(
        self, tower: PreTrainedModel, language: PreTrainedModel, fresh: tuple[nn.Module, ConnectorSpec]
    ) -> PreTrainedModel:
        """One model from its parts; those with weights are checked to answer text as the language model alone does."""
        connector, spec = fresh
        image_token_id = add_image_token(self.tokenizer, language)
        config = assembled_config(tower.config, language, spec, image_token_id)
        whole = language.device.type != "meta"
        return (assemble if whole else put_together)(tower, language, connector, config)
