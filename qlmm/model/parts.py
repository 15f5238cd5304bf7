"""The anatomy of a vision-language model: vision tower, connector, language model, head.

Every vision-language class of transformers answers three questions (where is the image encoder, where is the
decoder, where is the output head); the connector is what is left. So no list of model families is needed.
Quantisation, LoRA placement, learning rates and the run proof all speak in these four parts.

Usage: ``parts = split(model); parts.of("model.vision_tower.embeddings.class_embedding")  # "vision"``
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn
from transformers import PreTrainedModel

from qlmm.core.errors import ModelError

__all__ = ["PART_NAMES", "PartName", "Parts", "linear_names", "split"]

PartName = Literal["vision", "connector", "language", "head"]
PART_NAMES: tuple[PartName, ...] = get_args(PartName)

# PEFT puts its wrappers into parameter names; what remains after removing them is the base model's own name.
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Parts:
    """Module names of each part, relative to the (unwrapped) model; every parameter belongs to exactly one part."""

    vision: tuple[str, ...]
    connector: tuple[str, ...]
    language: tuple[str, ...]
    head: tuple[str, ...]

    def modules(self, part: PartName) -> tuple[str, ...]:
        """Names of the modules that make up a part."""
        return {"vision": self.vision, "connector": self.connector, "language": self.language, "head": self.head}[part]

    def of(self, parameter: str) -> PartName:
        """The part a parameter belongs to; takes names of the bare model and of one wrapped by PEFT.

        Raises:
            KeyError: when the name lies in none of the parts, which `split` rules out for the model it was given.
        """
        name = parameter.removeprefix(_PEFT_PREFIX)
        for part in PART_NAMES:
            if any(name == module or name.startswith(module + ".") for module in self.modules(part)):
                return part
        raise KeyError(parameter)


def split(model: PreTrainedModel) -> Parts:
    """Find the parts of a model; works on the meta device, so it needs no weights.

    Raises:
        ModelError: M010 when the model has no image encoder (text-only) or no separate language model.
    """
    names = {id(module): name for name, module in model.named_modules()}
    encoder, decoder, head = model.get_encoder("image"), model.get_decoder(), model.get_output_embeddings()
    if encoder is model or id(encoder) not in names:
        raise ModelError.one(
            "M010",
            f"{type(model).__name__} has no image encoder",
            help="name a vision-language model in base.model, or assemble one with base.vision, base.connector "
            "and base.language",
        )
    if decoder is model or id(decoder) not in names or decoder is model.base_model:
        raise ModelError.one(
            "M010",
            f"{type(model).__name__} has no language model that can be told apart from the rest",
            help="this class keeps vision and language in one stack; choose another base",
        )
    vision, language = names[id(encoder)], names[id(decoder)]
    heads = (names[id(head)],) if head is not None and id(head) in names else ()
    connector = tuple(_rest(model, {vision, language, *heads}))
    return Parts(vision=(vision,), connector=connector, language=(language,), head=heads)


def _rest(model: nn.Module, known: set[str], prefix: str = "") -> Iterator[str]:
    """Top-most modules with parameters that neither contain nor lie in a known part."""
    for child_name, child in model.named_children():
        name = f"{prefix}{child_name}"
        if name in known or next(child.parameters(), None) is None:
            continue
        if any(part.startswith(name + ".") for part in known):
            yield from _rest(child, known, name + ".")
        else:
            yield name


def linear_names(model: nn.Module, module: str) -> list[str]:
    """Full names of the linear layers inside a module, quantised ones included (they subclass `nn.Linear`)."""
    inside = model.get_submodule(module)
    return [f"{module}.{name}" for name, child in inside.named_modules() if isinstance(child, nn.Linear) and name]
