"""A native base: one checkpoint of a vision-language model that transformers has a class for.

Usage: ``source = NativeSource.read("HuggingFaceTB/SmolVLM-256M-Instruct")``
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from qlmm.compat.transformers_models import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from qlmm.core.errors import NotVisionLanguage
from qlmm.model.loading.hub import Located, config_of, locate, pinned, reading
from qlmm.model.loading.identity import BaseIdentity, Role
from qlmm.model.loading.source import Blueprint, part_identity, read_quantised
from qlmm.model.numerics.precision import Precision
from qlmm.model.numerics.quantization import QuantKind, skip_names
from qlmm.model.parts.split import split

__all__ = ["NativeSource"]

_KEY = "base.model"


@dataclass(frozen=True)
class NativeSource:
    """The one checkpoint, and its configuration."""

    place: Located
    config: PreTrainedConfig
    identity: BaseIdentity
    speaks: Role = "model"

    @classmethod
    def read(cls, name: str) -> NativeSource:
        """Read the configuration.

        Raises:
            ModelError: M003 and following when it cannot be had, M010 when it is not a vision-language model's.
        """
        config = config_of(locate(name), _KEY)
        if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise NotVisionLanguage.one(
                "M010",
                f"{name} is not a vision-language model (it is of kind {config.model_type})",
                key=_KEY,
                help="to assemble one, name a language model as base.language, a vision encoder such as CLIP as "
                "base.vision, and what joins them as base.connector",
            )
        place = pinned(locate(name))
        return cls(place, config, BaseIdentity(kind="native", parts={"model": part_identity(place, config)}))

    @property
    def places(self) -> dict[Role, Located]:
        """The checkpoint."""
        return {"model": self.place}

    @property
    def answers_in_decoder(self) -> bool:
        """Whether the class has a decoder of its own for answers."""
        return bool(self.config.is_encoder_decoder)

    @cached_property
    def shape(self) -> Blueprint:
        """The model of the configuration, on the meta device."""
        with torch.device("meta"), reading(_KEY, self.place):
            model: PreTrainedModel = AutoModelForImageTextToText.from_config(copy.deepcopy(self.config))
        return Blueprint(model, split(model))

    @cached_property
    def processor(self) -> ProcessorMixin:
        """The checkpoint's own processor."""
        with reading(_KEY, self.place):
            return AutoProcessor.from_pretrained(self.place.path, **self.place.options)

    @cached_property
    def unquantised(self) -> frozenset[str]:
        """Everything outside the language model, and routers."""
        return frozenset(skip_names(self.shape.model, self.shape.parts))

    def saved_processor(self, folder: Path) -> ProcessorMixin:
        """A processor that transformers wrote."""
        return AutoProcessor.from_pretrained(str(folder), trust_remote_code=False)

    def load(self, precision: Precision, quantize: QuantKind, seed: int) -> PreTrainedModel:
        """The checkpoint's weights; no weight is drawn, so that the seed decides nothing."""
        keep = sorted(self.unquantised)
        return read_quantised(AutoModelForImageTextToText, self.place, self.config, precision, quantize, keep)
