"""What both kinds of base can do: the one interface that a native and an assembled base implement.

Usage: ``class NativeSource: …``, which ``Base.resolve`` chooses
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from qlmm.model.loading.hub import Located, config_sha256, reading
from qlmm.model.loading.identity import BaseIdentity, PartIdentity, Role
from qlmm.model.numerics.precision import Precision
from qlmm.model.numerics.quantization import QuantKind, keep_trainable, quantization
from qlmm.model.parts.split import Parts

__all__ = ["BaseSource", "Blueprint", "part_identity", "read_quantised"]


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A base without weights: every module and parameter is there, on the meta device."""

    model: PreTrainedModel
    parts: Parts


class BaseSource(Protocol):
    """Where a base comes from. Configurations were read and checked when it was made; nothing is read twice."""

    @property
    def places(self) -> Mapping[Role, Located]:
        """The checkpoints it consists of, each at the commit that was looked at."""

    @property
    def identity(self) -> BaseIdentity:
        """What exactly it is."""

    @property
    def speaks(self) -> Role:
        """The checkpoint that generates text."""

    @property
    def answers_in_decoder(self) -> bool:
        """Whether answers go to a decoder of their own, as in T5."""

    @property
    def shape(self) -> Blueprint:
        """The base without weights."""

    @property
    def processor(self) -> ProcessorMixin:
        """Its processor with the chat template it was published with."""

    @property
    def unquantised(self) -> frozenset[str]:
        """Linear layers that stay as they are when the base is quantised, by their names in `shape`."""

    def saved_processor(self, folder: Path) -> ProcessorMixin:
        """A processor of this base, read back from a folder."""

    def load(self, precision: Precision, quantize: QuantKind, seed: int) -> PreTrainedModel:
        """The base with its weights."""


def part_identity(place: Located, config: PreTrainedConfig) -> PartIdentity:
    """What a checkpoint is, from its place and its configuration."""
    return PartIdentity(id=place.name, revision=place.at, config_sha256=config_sha256(config))


def read_quantised(
    auto: Any, place: Located, config: PreTrainedConfig, precision: Precision, quantize: QuantKind, keep: list[str]
) -> PreTrainedModel:
    """Load a checkpoint straight onto its device, language layers quantised.

    Args:
        auto: the Auto class of transformers that knows the model.
        place: where its files are.
        config: its configuration, which stays as it is.
        precision: where it goes and what it computes in.
        quantize: how linear layers are stored.
        keep: full names of those that are not quantised.
    """
    with reading("base", place):
        model: PreTrainedModel = auto.from_pretrained(
            place.path,
            config=copy.deepcopy(config),
            dtype=precision.compute,
            quantization_config=quantization(quantize, keep=keep, compute=precision.compute),
            device_map={"": 0} if precision.device == "cuda" else None,
            **place.options,
        )
    keep_trainable(model)
    return model
