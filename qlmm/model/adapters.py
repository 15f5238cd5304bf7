"""What is trained: LoRA anchored to the language model, connector (and tower) through PEFT's `modules_to_save`.

`all-linear` or a suffix such as `q_proj` would also hit a CLIP tower, so targets are resolved to full names inside the
language model and written down as one anchored pattern. The connector goes through `modules_to_save`, because a module
trained by plain `requires_grad` is missing from the adapter and moves the adapter-disabled reference.

Usage: ``peft_model, placed = attach(model, split(model), recipe.adapter, quantize="nf4")``
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoftQConfig, LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers import PreTrainedModel

from qlmm.core.errors import ModelError
from qlmm.model.parts import PartName, Parts, linear_names
from qlmm.model.quantise import QuantKind
from qlmm.recipe.schema import AdapterSection

__all__ = ["Placement", "attach", "check_variant", "place", "resolve_targets"]

# Initialisations that decompose the base weight, which PEFT cannot read once it is quantised.
_NEEDS_PLAIN_WEIGHTS = {"pissa", "olora", "loftq"}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the adapter goes.

    Attributes:
        parts: the base's parts.
        lora: full names of the layers that get LoRA.
        endings: how many of them end in each name.
        pattern: the same as one regular expression, as PEFT stores it.
        whole: modules trained in full.
        carried: modules that an earlier adapter trained and this run only passes on.
        asked: the parts the recipe asks to train.
        rank: LoRA's rank.
    """

    parts: Parts
    lora: tuple[str, ...]
    endings: dict[str, int]
    pattern: str
    whole: tuple[str, ...]
    carried: tuple[str, ...]
    asked: frozenset[PartName]
    rank: int


def place(
    model: PreTrainedModel, parts: Parts, section: AdapterSection, *, earlier: frozenset[PartName] = frozenset()
) -> Placement:
    """Resolve a recipe's adapter section on a model (the meta device is enough).

    Args:
        model: the base.
        parts: its parts.
        section: the recipe's section.
        earlier: parts that the adapter this run starts from holds whole.

    Raises:
        ModelError: M030 when a target matches no linear layer; M031 when nothing at all would be trained.
    """
    names = resolve_targets(model, parts, section.targets) if section.language == "lora" else []
    choices: dict[PartName, str] = {"connector": section.connector, "vision": section.vision}
    trained = [part for part, choice in choices.items() if choice == "full" and parts.modules(part)]
    whole = [name for part in trained for name in parts.modules(part)]
    carried = [name for part in sorted(earlier - set(trained)) for name in parts.modules(part)]
    asked: frozenset[PartName] = frozenset(trained) | ({"language"} if names else set())
    if not asked:
        raise ModelError.one(
            "M031",
            "the recipe leaves nothing to train: this base has no connector of its own, and the rest is frozen",
            help="set adapter.language=lora",
        )
    endings = dict(sorted(Counter(name.rsplit(".", 1)[-1] for name in names).items()))
    return Placement(
        parts=parts,
        lora=tuple(names),
        endings=endings,
        pattern=_pattern(names),
        whole=tuple(whole),
        carried=tuple(carried),
        asked=asked,
        rank=section.r,
    )


def resolve_targets(model: PreTrainedModel, parts: Parts, targets: tuple[str, ...]) -> list[str]:
    """Full names of the language model's linear layers that the targets name; never the output head.

    Raises:
        ModelError: M030 for a target without a match, listing the endings there are.
    """
    linear = [name for module in parts.language for name in linear_names(model, module) if name not in parts.head]
    if targets == ("all-linear",):
        return linear
    chosen: list[str] = []
    for target in targets:
        matched = [name for name in linear if name == target or name.endswith("." + target)]
        if not matched:
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            raise ModelError.one(
                "M030",
                f"adapter.targets: `{target}` matches no linear layer of the language model ({parts.language[0]})",
                help=f"endings there are: {known}; or all-linear",
            )
        chosen += matched
    return sorted(set(chosen), key=linear.index)


def _pattern(names: list[str]) -> str:
    """One regular expression that PEFT matches in full: layer numbers generalised, anchored at the language model."""
    if not names:
        return str(DUMMY_TARGET_MODULES)
    shapes = sorted({re.sub(r"(?<=\.)\d+(?=\.)", "#", name) for name in names})
    return "|".join(re.escape(shape).replace(re.escape("#"), r"\d+") for shape in shapes)


def check_variant(section: AdapterSection, quantize: QuantKind) -> None:
    """Refuse an initialisation that PEFT cannot do on quantised layers, before anything is loaded.

    Raises:
        ModelError: M032.
    """
    if section.language == "lora" and section.variant in _NEEDS_PLAIN_WEIGHTS and quantize != "none":
        raise ModelError.one(
            "M032",
            f"adapter.variant: {section.variant} decomposes the base weights, which PEFT cannot do on {quantize} ones",
            help="set base.quantize=none, or use plain, rslora or dora, which work on quantised layers",
        )


def lora_config(placement: Placement, section: AdapterSection) -> LoraConfig:
    """PEFT's configuration for a placement.

    A run that trains whole modules only still needs a LoRA configuration, as the format that carries
    `modules_to_save`; PEFT's own dummy target stands for "no layer".
    """
    init: dict[str, Any] = {}
    if section.variant in ("pissa", "olora"):
        init["init_lora_weights"] = section.variant
    elif section.variant == "loftq":
        init |= {"init_lora_weights": "loftq", "loftq_config": LoftQConfig(loftq_bits=4)}
    return LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        use_rslora=section.variant == "rslora",
        use_dora=section.variant == "dora",
        target_modules=placement.pattern,
        modules_to_save=[*placement.whole, *placement.carried] or None,
        task_type="CAUSAL_LM",
        **init,
    )


def attach(model: PreTrainedModel, placement: Placement, section: AdapterSection, *, seed: int) -> PeftModel:
    """Wrap the model; only what the placement names is trainable, and all of that in fp32.

    LoRA's random half is drawn from `seed`, so that an untouched adapter can be rebuilt bit for bit.

    Raises:
        ModelError: M033 when PEFT adapted other layers than the placement says.
    """
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, lora_config(placement, section))
    adapted = {
        name.removeprefix("base_model.model.").rsplit(".lora_A", 1)[0]
        for name, _ in wrapped.named_parameters()
        if ".lora_A." in name
    }
    if adapted != set(placement.lora):
        strangers = sorted(adapted ^ set(placement.lora))[:5]
        raise ModelError.one("M033", f"PEFT adapted other layers than planned, for example {', '.join(strangers)}")
    for name, parameter in wrapped.named_parameters():
        if any(name.startswith(f"base_model.model.{module}.") for module in placement.carried):
            parameter.requires_grad_(False)
    to_fp32(wrapped)
    return wrapped


def to_fp32(model: torch.nn.Module) -> None:
    """Keep every trainable weight in fp32: at a rate of 2e-5 most bf16 weights would not move at all."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
