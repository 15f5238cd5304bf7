"""What a connector and a vision tower must define to be used by name.

A connector is one file in ``qlmm/model/connectors`` that defines ``CONNECTOR``, a tower that transformers lacks is one
file in ``qlmm/model/towers`` that defines ``TOWER``; the file name is the name in a recipe. Shapes in this package:
B pictures, T tokens of the tower, G tokens of its grid, Q queries, V vision width, D width of the language model.

Usage: ``spec = connector("abstractor"); module = spec.build(spec.read({"queries": 32}), 1024, 4096)``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from qlmm.core.errors import ModelError, Problem
from qlmm.core.naming import close, load, names

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

__all__ = ["CONNECTORS", "TOWERS", "Connector", "Fit", "Settings", "Stated", "Takes", "Tower", "connector", "own_tower"]

CONNECTORS = "qlmm.model.connectors"
TOWERS = "qlmm.model.towers"


class Settings(BaseModel):
    """Base of a connector's settings: unknown keys are errors, values are never converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


SettingsT = TypeVar("SettingsT", bound=Settings)

# Which of the tower's tokens a connector is given: its grid, or also the class and register tokens before it.
Takes = Literal["grid", "class+grid"]
# How pictures come to the tower's size: stretched, or as the tower's own processor does it, which cuts the margin off.
Fit = Literal["squash", "crop"]
# The configuration of a published checkpoint as it was written.
Stated = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Connector(Generic[SettingsT]):
    """A module that turns a tower's tokens into inputs of a language model.

    Attributes:
        settings: its recipe keys besides ``kind``; the field descriptions are the documentation.
        build: makes the module from settings, vision width V and text width D, randomly initialised from PyTorch's
            global generator. Its forward takes (B, T, V) and gives (B, ``placeholders``, D). Learned queries and
            end tokens must live inside it, since PEFT can only save modules.
        placeholders: tokens that a picture takes in the text, from settings and the number of tokens it is given.
        takes: which of the tower's tokens it is given.
        vision_layer: which hidden state of the tower it takes unless the recipe names one; -1 is the last
            block's output, None the tower's final, normalised tokens.
        fit: how pictures come to the tower's size.
        plain_llava: whether a model with it is an ordinary ``LlavaForConditionalGeneration``.
        source: the paper or code it follows.
        weights: how published checkpoints name its weights: the start of a name there, and what replaces it. The
            first that fits decides; a name that no start fits is not the connector's.
        published: settings that published weights were made with, from the weights under own names and from their
            configuration; None where there is nothing to set.
        start: puts a fresh module's outputs where the language model's words are. It takes the module, the mean of
            the word embeddings (D), and their standard deviation around it.
    """

    settings: type[SettingsT]
    build: Callable[[SettingsT, int, int], nn.Module]
    placeholders: Callable[[SettingsT, int], int]
    takes: Takes
    vision_layer: int | None
    fit: Fit
    plain_llava: bool
    source: str
    weights: Mapping[str, str] = field(default_factory=dict)
    published: Callable[[Mapping[str, Tensor], Stated], SettingsT] | None = None
    start: Callable[[nn.Module, Tensor, float], None] | None = None

    def own_name(self, published: str) -> str | None:
        """The module's name for a weight of a published checkpoint; None for a weight of another part."""
        for theirs, ours in self.weights.items():
            if published.startswith(theirs):
                return ours + published.removeprefix(theirs)
        return None

    def read(self, raw: Mapping[str, Any]) -> SettingsT:
        """The settings in a recipe's connector keys; raises M101 with every problem at once."""
        try:
            return self.settings.model_validate(dict(raw))
        except ValidationError as error:
            known = self.settings.model_fields
            problems = []
            for fault in error.errors():
                key = ".".join(str(step) for step in fault["loc"])
                if fault["type"] == "extra_forbidden":
                    problem = Problem("M101", f"unknown key `{key}`", help=close(key, known), key="base.connector")
                else:
                    doc = known[key].description if key in known else None
                    problem = Problem("M101", fault["msg"], help=doc, key=f"base.connector.{key}")
                problems.append(problem)
            raise ModelError(problems) from error


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A vision encoder that transformers lacks, wrapped as one of its models.

    Attributes:
        config: configuration class; ``model_type`` is the file's name, and it has ``hidden_size``, ``patch_size``
            and ``image_size``.
        model: model class; its output has ``last_hidden_state`` (B, T, V) and a tuple ``hidden_states`` of that shape.
        image_processor: makes its image processor.
        vision_layer: the hidden state for connectors that ask for an inner layer by number.
        source: the paper or code it follows.
    """

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    image_processor: Callable[[], BaseImageProcessor]
    vision_layer: int
    source: str


def connector(kind: str) -> Connector[Any]:
    """The connector called ``kind`` in a recipe, imported now; raises N001 with the nearest names."""
    return load(CONNECTORS, kind, "CONNECTOR", Connector)


def own_tower(model_type: str) -> Tower | None:
    """The tower of ours with this ``model_type``, now known to ``AutoConfig`` and ``AutoModel``; None for others."""
    if model_type not in names(TOWERS):
        return None
    return load(TOWERS, model_type, "TOWER", Tower)
