"""The anatomy of a vision-language model: vision tower, connector, language model, head.

Nearly every vision-language class of transformers answers three questions (where is the image encoder, where is the
decoder, where is the output head); the connector is what is left. What the answers miss is known by the names that
`anatomy.py` lists, so no list of model families has to be kept.
Quantisation, LoRA placement, learning rates and the run proof all speak in these parts.

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


@dataclass(frozen=True, slots=True)
class Parts:
    """Module names of each part, relative to the (unwrapped) model; every parameter belongs to exactly one part.

    A connector may lie inside the tower or inside the language model: the longest name that fits decides.

    Attributes:
        bare: parameters of the connector that lie in no module of their own, such as LLaVA-NeXT's `image_newline`.
        discrete: whether the tower turns pictures into tokens, which no gradient passes.
        other: what neither reads pictures nor text, such as an audio tower; it is never trained.
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
        return {
            "vision": self.vision,
            "connector": self.connector,
            "language": self.language,
            "head": self.head,
            "other": self.other,
        }[part]

    def has(self, part: PartName) -> bool:
        """Whether the model has such a part at all."""
        return bool(self.modules(part)) or (part == "connector" and bool(self.bare))

    def of(self, parameter: str) -> PartName:
        """The part a parameter belongs to; takes names of the bare model and of one wrapped by PEFT.

        Raises:
            KeyError: when the name lies in none of the parts, which `split` rules out for the model it was given.
        """
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
    """Find the parts of a model; works on the meta device, so it needs no weights.

    Raises:
        ModelError: M010 when the model has no image encoder (text-only) or no separate language model.
    """
    if (known := UNSPLIT.get(model.config.model_type)) is not None:
        parts = _completed(model, known.vision, known.language, known.connector)
        return replace(parts, discrete=known.discrete)
    names = {id(module): name for name, module in model.named_modules()}
    encoder, decoder = model.get_encoder("image"), model.get_decoder()
    if encoder is model or id(encoder) not in names:
        raise NotVisionLanguage.one(
            "M010",
            f"{type(model).__name__} has no image encoder",
            help="name a vision-language model in base.model, or assemble one with base.vision, base.connector "
            "and base.language",
        )
    if decoder is model or id(decoder) not in names or decoder is model.base_model:
        raise NotVisionLanguage.one(
            "M010",
            f"{type(model).__name__} has no language model that can be told apart from the rest",
            help="this class keeps vision and language in one stack; choose another base",
        )
    vision = names[id(encoder)]
    language = _language_around(model, names[id(decoder)], vision)
    return _completed(model, (vision,), (language,), ())


def _language_around(model: nn.Module, decoder: str, vision: str) -> str:
    """The largest model around the decoder that does not hold the tower: BLIP-2 keeps a whole OPT or T5 inside."""
    language = decoder
    while "." in language:
        parent = language.rpartition(".")[0]
        if not isinstance(model.get_submodule(parent), PreTrainedModel) or _inside(vision, parent):
            break
        language = parent
    return language


def _completed(
    model: PreTrainedModel, vision: tuple[str, ...], language: tuple[str, ...], connector: tuple[str, ...]
) -> Parts:
    """Parts with head, and with everything that tower and language model leave over."""
    head = model.get_output_embeddings()
    heads = tuple(name for name, module in model.named_modules() if module is head)
    left = list(_rest(model, {*vision, *language, *heads, *connector}))
    towers = tuple(name for name in left if _ends(name, SECOND_TOWERS))
    other = tuple(name for name in left if _ends(name, OTHER))
    between = tuple(name for name in left if name not in towers + other)
    inside = tuple(_inner_connectors(model, vision)) + tuple(_cross_attention(model, language))
    parts = Parts((*vision, *towers), (*connector, *between, *inside), language, heads, other=other)
    bare = tuple(name for name, _ in model.named_parameters() if not _placed(parts, name))
    return replace(parts, bare=bare)


def _placed(parts: Parts, name: str) -> bool:
    return any(_inside(name, module) for part in PART_NAMES for module in parts.modules(part))


def _ends(name: str, endings: dict[str, str]) -> bool:
    return name.rpartition(".")[2] in endings


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
    """Modules inside a tower that bring its features to the language model's width or number."""
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
    return [
        f"{module}.{name}" if name else module for name, child in inside.named_modules() if isinstance(child, nn.Linear)
    ]
