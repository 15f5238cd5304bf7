"""The base: what a recipe's `base` section names, resolved once a command and passed on from there.

Each configuration, tokenizer and image processor is read at most once; only weights are read as often as they are
asked for. Both kinds of base have one interface, and nothing outside this file asks which it is.

Usage:
    base = Base.resolve(recipe.base)
    base.shape.parts, base.processor  # no weight is read
    model = base.load(precision, seed=0)
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from qlmm.compat.transformers_models import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from qlmm.core.errors import NoTemplate, NotVisionLanguage
from qlmm.data.encoding.encoder import Encoder
from qlmm.model.assembled.build import assemble, assembled_config, connector_for
from qlmm.model.assembled.language import add_image_token, check_language, embedding_width
from qlmm.model.assembled.processor import assembled_processor
from qlmm.model.assembled.vision import VisionFacts, picture_size, prepared, vision_facts, vision_half
from qlmm.model.contract import connector as find_connector
from qlmm.model.image_budget.budget import Budget, budgeted
from qlmm.model.loading.chat_template import chat_template, template_names
from qlmm.model.loading.connector_weights import begin, check_fits, take_over, weights_identity
from qlmm.model.loading.hub import Located, building, config_of, config_sha256, locate, locate_part, pinned, reading
from qlmm.model.loading.identity import BaseIdentity, PartIdentity, Role
from qlmm.model.loading.whole import check_headers, load_whole
from qlmm.model.numerics.precision import Precision
from qlmm.model.numerics.quantization import QuantKind, keep_trainable, quantization, skip_names
from qlmm.model.parts.split import Parts, split
from qlmm.recipe.schema import BaseSection, ConnectorSection, DataSection

__all__ = ["Base", "Blueprint", "NativeBase"]

_MODEL, _VISION, _LANGUAGE = "base.model", "base.vision", "base.language"


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A base without weights: every module and parameter is there, on the meta device."""

    model: PreTrainedModel
    parts: Parts


@dataclass(frozen=True)
class Base(ABC):
    """A base whose configurations were read and found possible.

    Attributes:
        section: the recipe's section, as it was written.
        identity: kind, and per part its id, revision and a hash of its configuration.
        places: its checkpoints, each at the commit that was looked at.
    """

    section: BaseSection
    identity: BaseIdentity
    places: Mapping[Role, Located]

    @classmethod
    def resolve(cls, section: BaseSection) -> Base:
        """Read a base's configurations and check them; no weight is read.

        Raises:
            UsageError: B001 and following for packaged weights that cannot be prepared, N001 for an unknown connector.
            ModelError: M003 to M007 for a part that cannot be had, M010 and M101 and following for what makes
                the base impossible.
        """
        if section.model is not None:
            return NativeBase.read(section, section.model)
        if section.vision is None or section.language is None or section.connector is None:
            raise ValueError("the recipe's schema lets only whole bases through")
        return AssembledBase.read(section, section.vision, section.language, section.connector)

    @property
    @abstractmethod
    def shape(self) -> Blueprint:
        """The base on the meta device, shared: attach adapters to a copy. Raises M010 if its parts are unclear."""

    @property
    @abstractmethod
    def published_processor(self) -> ProcessorMixin:
        """Its processor with the chat template it was published with."""

    def saved_processor(self, folder: Path) -> ProcessorMixin:
        """The processor that was saved with an adapter of this base."""
        return AutoProcessor.from_pretrained(str(folder), trust_remote_code=False)

    @abstractmethod
    def _load(self, precision: Precision, quantize: QuantKind, seed: int) -> PreTrainedModel:
        """The base with its weights."""

    @abstractmethod
    def check_weights(self) -> None:
        """Refuse (M007, M151, M152) a base that is not whole, by the headers of its files; no weight is read."""

    @property
    def answers_in_decoder(self) -> bool:
        """Whether answers go to a decoder of their own, as in T5, instead of following the question."""
        return False

    @property
    def name(self) -> str:
        """What people call it: the model, or its three parts."""
        if self.section.connector is None:
            return str(self.section.model)
        return f"{self.section.vision} + {self.section.connector.kind} + {self.section.language}"

    @property
    def text_place(self) -> tuple[Located, str]:
        """The checkpoint that generates text, and its recipe key."""
        role: Role = "language" if "language" in self.places else "model"
        return self.places[role], f"base.{role}"

    @cached_property
    def unquantised(self) -> frozenset[str]:
        """Linear layers that stay as they are when the base is quantised, by their names in `shape`."""
        return frozenset(skip_names(self.shape.model, self.shape.parts))

    @cached_property
    def processor(self) -> ProcessorMixin:
        """The processor with the recipe's chat template; raises M040 for an unknown one, M041 without any."""
        template = chat_template(self.section.chat_template)
        processor = copy.copy(self.published_processor)
        if template is not None:
            processor.chat_template = template
        if not processor.chat_template:
            raise NoTemplate.one(
                "M041",
                f"{self.section.model or self.section.language} has no chat template of its own",
                key="base.chat_template",
                help=f"set base.chat_template to one of {', '.join(template_names())}, or to a .jinja file",
            )
        return processor

    def encoder(self, data: DataSection, processor: ProcessorMixin | None = None) -> tuple[Encoder, tuple[str, ...]]:
        """An encoder under a recipe's pixel budget, and what the budget set, in words.

        A saved processor takes the place of the base's own; it is copied, never changed. Raises D030 and following when
        the processor cannot be used for training, M060 and following when it cannot follow the budget.
        """
        own, words = budgeted(processor or self.processor, Budget.of(data))
        decoder = self.answers_in_decoder
        encoder = Encoder.make(
            own, max_length=data.max_length, overlong=data.overlong, decoder=decoder, thinking=bool(data.thinking)
        )
        return encoder, words

    def load(self, precision: Precision, *, seed: int, quantize: QuantKind | None = None) -> PreTrainedModel:
        """The base with its weights, in evaluation mode: a new model with every call.

        The seed decides a fresh connector's weights bit for bit; ``quantize`` replaces the recipe's. Raises as
        `check_weights`, before a weight is read where the files are on this machine.
        """
        self.check_weights()
        model = self._load(precision, quantize or self.section.quantize, seed)
        model.config.use_cache = False
        return model.eval()

    def pinned(self) -> BaseSection:
        """The recipe's section with each Hub id at the commit that was looked at: what a branch points to changes."""
        parts = self.identity.parts
        at: dict[str, object] = {role: parts[role].pinned for role, place in self.places.items() if place.at}
        if "connector" in parts and self.section.connector is not None:
            at["connector"] = self.section.connector.model_copy(update={"weights": parts["connector"].pinned})
        return self.section.model_copy(update=at)


@dataclass(frozen=True)
class NativeBase(Base):
    """One checkpoint of a vision-language model that transformers has a class for, and its configuration."""

    config: PreTrainedConfig

    @classmethod
    def read(cls, section: BaseSection, name: str) -> NativeBase:
        """Read the configuration; raises as `Base.resolve`."""
        config = config_of(locate(name), _MODEL)
        if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise NotVisionLanguage.one(
                "M010",
                f"{name} is not a vision-language model (it is of kind {config.model_type})",
                key=_MODEL,
                help="to assemble one, name a language model as base.language, a vision encoder such as CLIP as "
                "base.vision, and what joins them as base.connector",
            )
        place = pinned(locate(name))
        return cls(
            section, BaseIdentity(kind="native", parts={"model": _part(place, config)}), {"model": place}, config
        )

    @property
    def answers_in_decoder(self) -> bool:
        """Whether the class has a decoder of its own for answers."""
        return bool(self.config.is_encoder_decoder)

    @cached_property
    def shape(self) -> Blueprint:
        """The model of the configuration, on the meta device."""
        with building(_MODEL, self.places["model"]):
            model: PreTrainedModel = AutoModelForImageTextToText.from_config(copy.deepcopy(self.config))
        return Blueprint(model, split(model))

    @cached_property
    def published_processor(self) -> ProcessorMixin:
        """The checkpoint's own processor."""
        place = self.places["model"]
        with reading(_MODEL, place):
            return AutoProcessor.from_pretrained(place.path, **place.options)

    def check_weights(self) -> None:
        """Compare the headers of the checkpoint's files with its class."""
        check_headers(type(self.shape.model), self.places["model"], self.config, _MODEL)

    def _load(self, precision: Precision, quantize: QuantKind, seed: int) -> PreTrainedModel:
        keep, place = sorted(self.unquantised), self.places["model"]
        auto = AutoModelForImageTextToText
        return _loaded(auto, place, self.config, _MODEL, precision=precision, quantize=quantize, keep=keep)


@dataclass(frozen=True)
class AssembledBase(Base):
    """A tower, a fresh connector and a language model, each from its own place.

    Attributes:
        connector: the recipe's section, with the settings of its published weights.
        facts: what the tower makes of a picture.
        image_processor: the tower's, prepared for this connector.
        tokenizer: the language model's; it gets the token that marks a picture's place.
    """

    connector: ConnectorSection
    vision_config: PreTrainedConfig
    facts: VisionFacts
    image_processor: BaseImageProcessor
    language_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def read(cls, section: BaseSection, vision: str, language: str, asked: ConnectorSection) -> AssembledBase:
        """Read everything but weights, each part checked before the next is read; raises as `Base.resolve`."""
        fit, connector = find_connector(asked.kind).fit, take_over(asked)
        tower = locate_part(vision, "vision")
        tower_config = config_of(tower, _VISION)
        half, tower = vision_half(tower_config, vision), pinned(tower)
        with reading(_VISION, tower):
            pictures = AutoImageProcessor.from_pretrained(tower.path, **tower.options)
        pictures = prepared(pictures, fit)
        llm = locate_part(language, "language")
        llm_config = config_of(llm, _LANGUAGE)
        check_language(llm_config, language)
        llm = pinned(llm)
        with reading(_LANGUAGE, llm):
            tokenizer = AutoTokenizer.from_pretrained(llm.path, **llm.options)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        parts: dict[Role, PartIdentity] = {"vision": _part(tower, tower_config), "language": _part(llm, llm_config)}
        if (weights := weights_identity(connector)) is not None:
            parts["connector"] = weights
        return cls(
            section=section,
            identity=BaseIdentity(kind="assembled", parts=parts, connector=connector),
            places={"vision": tower, "language": llm},
            connector=connector,
            vision_config=half,
            facts=vision_facts(half, picture_size(pictures)),
            image_processor=pictures,
            language_config=llm_config,
            tokenizer=tokenizer,
        )

    @cached_property
    def shape(self) -> Blueprint:
        """The parts put together on the meta device."""
        with building(_VISION, self.places["vision"]):
            tower = AutoModel.from_config(copy.deepcopy(self.vision_config))
        language = self._language_shape
        with torch.device("meta"):
            model = self._joined(tower, language, seed=0)
        return Blueprint(model, split(model))

    @cached_property
    def _language_shape(self) -> PreTrainedModel:
        with building(_LANGUAGE, self.places["language"]):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(self.language_config))
        return model

    @cached_property
    def published_processor(self) -> ProcessorMixin:
        """The tower's image processor and the language model's tokenizer, joined."""
        config: Any = self.shape.model.config
        return assembled_processor(self.image_processor, self.tokenizer, config=config, facts=self.facts)

    def check_weights(self) -> None:
        """Compare the headers of both checkpoints' files with their classes."""
        tower: Any = self.shape.model.base_model
        check_headers(type(tower.vision_tower), self.places["vision"], self.vision_config, _VISION)
        check_headers(type(self._language_shape), self.places["language"], self.language_config, _LANGUAGE)

    def _load(self, precision: Precision, quantize: QuantKind, seed: int) -> PreTrainedModel:
        vision, language = self.places["vision"], self.places["language"]
        tower = load_whole(AutoModel, vision, self.vision_config, _VISION, dtype=precision.compute)
        whole = {self.shape.model.get_submodule(name) for name in self.unquantised}
        keep = [name for name, module in self._language_shape.named_modules() if module in whole]
        auto, config = AutoModelForCausalLM, self.language_config
        llm = _loaded(auto, language, config, _LANGUAGE, precision=precision, quantize=quantize, keep=keep)
        return self._joined(tower.to(precision.device), llm, seed=seed)

    def _joined(self, tower: PreTrainedModel, language: PreTrainedModel, *, seed: int) -> PreTrainedModel:
        """The parts and a fresh connector as one model; parts with weights are checked to answer text as before."""
        image_token_id = add_image_token(self.tokenizer, language)
        connector, spec = connector_for(
            self.connector.kind,
            self.connector.settings,
            facts=self.facts,
            text_width=embedding_width(language),
            seed=seed,
            vision_layer=self.section.vision_layer,
        )
        config = assembled_config(tower.config, language, spec, image_token_id)
        if language.device.type == "meta":
            check_fits(self.connector, connector)
        else:
            begin(self.connector, connector, language)
        return assemble(tower, language, connector.to(language.device), config)


def _part(place: Located, config: PreTrainedConfig) -> PartIdentity:
    return PartIdentity(id=place.name, revision=place.at, config_sha256=config_sha256(config))


def _loaded(
    auto: Any,
    place: Located,
    config: PreTrainedConfig,
    key: str,
    *,
    precision: Precision,
    quantize: QuantKind,
    keep: list[str],
) -> PreTrainedModel:
    """A checkpoint loaded straight onto its device, linear layers quantised except those to keep."""
    model = load_whole(
        auto,
        place,
        config,
        key,
        dtype=precision.compute,
        quantization_config=quantization(quantize, keep=keep, compute=precision.compute),
        device_map={"": 0} if precision.device == "cuda" else None,
    )
    keep_trainable(model)
    return model
