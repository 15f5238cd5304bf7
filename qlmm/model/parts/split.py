"""The anatomy of a vision-language model: vision tower, connector, language model, head.

Nearly every vision-language class of transformers knows its image encoder, its decoder and its output head; the
connector is what is left. The rest is known by the names in `known_names.py`, so there is no list of model families.
Quantisation, LoRA placement, learning rates and the run proof all use these parts.

Usage: ``parts = split(model); parts.of("model.vision_tower.embeddings.class_embedding")  # "vision"``
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

from torch import nn
from transformers import PreTrainedModel

from qlmm.core.errors import NotVisionLanguage
from qlmm.model.parts.known_names import CONNECTOR_IN_TOWER, CROSS_ATTENTION, OTHER, SECOND_TOWERS, UNSPLIT, PartName

__all__ = ["PART_NAMES", "PEFT_PREFIX", "PartName", "Parts", "linear_names", "split"]

PART_NAMES: tuple[PartName, ...] = get_args(PartName)

# PEFT puts its wrappers into parameter names; what remains after removing them is the base model's own name.
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Parts:
    """Module names of each part, relative to the (unwrapped) model; every parameter belongs to exactly one part.

    A connector may lie inside the tower or inside the language model: the longest name that fits decides.

    Attributes:
        bare: parameters of the connector without a module of their own, such as LLaVA-NeXT's `image_newline`.
        other: what reads neither pictures nor text, such as an audio tower; it is never trained.
        discrete: whether the tower turns pictures into tokens, which no gradient passes.
    """

    vision: tuple[str, ...]
    connector: tuple[str, ...]
    language: tuple[str, ...]
    head: tuple[str, ...]
    bare: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    discrete: bool = False

    def modules(self, part: PartName) -> tuple[str, ...]:
        """Names of the modules that make up a part."""
        names: tuple[str, ...] = vars(self)[part]
        return names

    def has(self, part: PartName) -> bool:
        """Whether the model has such a part at all."""
        return bool(self.modules(part)) or (part == "connector" and bool(self.bare))

    def of(self, parameter: str) -> PartName:
        """The part of a parameter, by its name in the base or wrapped by PEFT; KeyError for one of another model."""
        name = parameter.removeprefix(PEFT_PREFIX)
        if name in self.bare:
            return "connector"
        fitting = [(len(module), part) for part in PART_NAMES for module in self.modules(part) if _inside(name, module)]
        if not fitting:
            raise KeyError(parameter)
        return max(fitting)[1]


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def split(model: PreTrainedModel) -> Parts:
    """The parts of a model, also on the meta device; raises M010 without image encoder or separate language model."""
    if (known := UNSPLIT.get(model.config.model_type)) is not None:
        parts = _completed(model, known.vision, known.language, known.connector)
        return replace(parts, discrete=known.discrete)
    names = {id(module): name for name, module in model.named_modules()}
    encoder, decoder = model.get_encoder("image"), model.get_decoder()
    if encoder is model or id(encoder) not in names:
        help = "name a vision-language model in base.model, or assemble one with base.vision, base.connector and "
        raise NotVisionLanguage.one("M010", f"{type(model).__name__} has no image encoder", help=f"{help}base.language")
    if decoder is model or id(decoder) not in names or decoder is model.base_model:
        message = f"{type(model).__name__} has no language model that is separate from the rest"
        help = "this class keeps vision and language in one stack; choose another base"
        raise NotVisionLanguage.one("M010", message, help=help)
    vision, language = names[id(encoder)], names[id(decoder)]
    # The largest model around the decoder without the tower: BLIP-2 has a whole OPT or T5 inside.
    while "." in language:
        parent = language.rpartition(".")[0]
        if not isinstance(model.get_submodule(parent), PreTrainedModel) or _inside(vision, parent):
            break
        language = parent
    return _completed(model, (vision,), (language,), ())


def _completed(
    model: PreTrainedModel, vision: tuple[str, ...], language: tuple[str, ...], connector: tuple[str, ...]
) -> Parts:
    """Parts with the head, and with everything that tower and language model leave over."""
    head = model.get_output_embeddings()
    heads = tuple(name for name, module in model.named_modules() if module is head)
    left = list(_rest(model, {*vision, *language, *heads, *connector}))
    towers = tuple(name for name in left if name.rpartition(".")[2] in SECOND_TOWERS)
    other = tuple(name for name in left if name.rpartition(".")[2] in OTHER)
    between = tuple(name for name in left if name not in towers + other)
    inside = tuple(_inner_connectors(model, vision)) + tuple(_cross_attention(model, language))
    parts = Parts((*vision, *towers), (*connector, *between, *inside), language, heads, other=other)
    modules = [module for part in PART_NAMES for module in parts.modules(part)]
    names = (name for name, _ in model.named_parameters())
    return replace(parts, bare=tuple(name for name in names if not any(_inside(name, module) for module in modules)))


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


def _inner_connectors(model: nn.Module, towers: tuple[str, ...]) -> Iterator[str]:
    """Modules inside a tower that change the width or number of its features."""
    for tower in towers:
        for name, child in model.get_submodule(tower).named_children():
            if name in CONNECTOR_IN_TOWER and next(child.parameters(), None) is not None:
                yield f"{tower}.{name}"


def _cross_attention(model: nn.Module, language: tuple[str, ...]) -> Iterator[str]:
    """Decoder layers that look at the picture and at nothing else, as in Mllama."""
    for module in language:
        for name, layer in model.get_submodule(module).named_modules():
            own = {child for child, _ in layer.named_children()}
            if own & CROSS_ATTENTION.keys() and "self_attn" not in own:
                yield f"{module}.{name}"


def linear_names(model: nn.Module, module: str) -> list[str]:
    """Full names of the linear layers of a module, quantised ones included (they subclass `nn.Linear`)."""
    inside = model.get_submodule(module)
    linear = [name for name, child in inside.named_modules() if isinstance(child, nn.Linear)]
    return [f"{module}.{name}" if name else module for name in linear]
