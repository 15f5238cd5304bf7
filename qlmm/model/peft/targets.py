"""Names in a recipe -> layers of a model: what LoRA goes into, and which modules are trained whole.

Usage: ``names = language_targets(model, parts, ("q_proj", "v_proj")); regex = pattern(model, names)``
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from torch import nn

from qlmm.compat.peft_private import DUMMY_TARGET_MODULES
from qlmm.core.errors import ModelError
from qlmm.model.parts.experts import expert_layers, fused_experts, routers
from qlmm.model.parts.known_names import UNREAD, WITHOUT_GRADIENT
from qlmm.model.parts.split import PART_NAMES, PartName, Parts, linear_names
from qlmm.recipe.schema import AdapterSection

__all__ = ["alike", "expert_targets", "language_targets", "linear_targets", "pattern", "unread", "whole_modules"]

ALL, EXPERTS = "all-linear", "experts"


def language_targets(model: nn.Module, parts: Parts, targets: tuple[str, ...]) -> list[str]:
    """The language model's layers that the targets name, without head and routers; raises M030 without a match."""
    linear = linear_targets(model, parts, "language")
    of_experts = set(expert_layers(linear))
    plain = [name for name in linear if name not in of_experts]
    chosen: list[str] = []
    for target in targets:
        matched = {ALL: plain, EXPERTS: sorted(of_experts)}.get(target)
        if matched is None:
            matched = [name for name in plain if name == target or name.endswith("." + target)]
        if not matched and target != EXPERTS:
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            message = f"`{target}` matches no linear layer of the language model ({parts.language[0]})"
            help = f"endings there are: {known}; or all-linear"
            raise ModelError.one("M030", message, help=help, key="adapter.targets")
        chosen += matched
    return sorted(set(chosen), key=linear.index)


def expert_targets(model: nn.Module, parts: Parts, section: AdapterSection) -> tuple[str, ...]:
    """Fused expert weights, if `experts` is a target; raises M034 without any, or with dropout (no support in PEFT)."""
    if EXPERTS not in section.targets:
        return ()
    fused = fused_experts(model, parts)
    if not fused and not expert_layers(linear_targets(model, parts, "language")):
        message, help = "this language model has no experts", "leave `experts` out"
        raise ModelError.one("M034", message, help=help, key="adapter.targets")
    if fused and section.dropout:
        message = "LoRA on fused experts works without dropout only (PEFT's target_parameters)"
        raise ModelError.one("M034", message, help="set adapter.dropout=0", key="adapter.targets")
    return fused


def linear_targets(model: nn.Module, parts: Parts, part: PartName) -> list[str]:
    """Full names of the linear layers of a part that LoRA can go into."""
    skipped = {*parts.head, *routers(model, parts), *_read_directly(model)}
    skipped |= {name.removesuffix(".weight") for name in unread(model, parts.modules(part))}
    names = [name for module in parts.modules(part) for name in linear_names(model, module)]
    return [
        name
        for name in names
        if name not in skipped and parts.of(name) == part and WITHOUT_GRADIENT.keys().isdisjoint(name.split("."))
    ]


def _read_directly(model: nn.Module) -> Iterator[str]:
    """Linear layers whose weight torch's own attention reads without calling them."""
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            yield f"{name}.out_proj"


def pattern(model: nn.Module, names: list[str]) -> str:
    """One regular expression that PEFT matches in full and that fits these layers and no other.

    Layer numbers are generalised where that adds no layer; Mllama's cross-attention layers lie between the others, so
    that theirs have to be listed.
    """
    if not names:
        return str(DUMMY_TARGET_MODULES)
    everywhere = alike(name for name, _ in model.named_modules())
    return "|".join(_one(shape, wanted, everywhere[shape]) for shape, wanted in sorted(alike(names).items()))


def _one(shape: str, wanted: list[str], there: list[str]) -> str:
    if set(wanted) == set(there):
        return re.escape(shape).replace(re.escape("#"), r"\d+")
    if shape.count("#") == 1:
        before, after = shape.split("#")
        numbers = sorted(int(name[len(before) : len(name) - len(after)]) for name in wanted)
        return f"{re.escape(before)}(?:{'|'.join(map(str, numbers))}){re.escape(after)}"
    return "|".join(re.escape(name) for name in sorted(wanted))


def alike(names: Iterable[str]) -> dict[str, list[str]]:
    """Names that differ in layer numbers only, under what they share, such as ``model.layers.#.mlp``."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name), []).append(name)
    return found


def unread(model: nn.Module, whole: tuple[str, ...]) -> frozenset[str]:
    """Parameters inside modules trained whole that no output depends on: they stay frozen, or seem to fail to learn."""
    found: set[str] = set()
    for name in whole:
        layers = [place for place, _ in model.get_submodule(name).named_modules() if re.search(r"\blayer\.\d+$", place)]
        for branch in UNREAD.get(name.rpartition(".")[2], ()) if layers else ():
            last = f"{name}.{max(layers, key=lambda place: int(place.rpartition('.')[2]))}.{branch}."
            found |= {parameter for parameter, _ in model.named_parameters() if parameter.startswith(last)}
    return frozenset(found)


def whole_modules(model: nn.Module, parts: Parts, part: PartName) -> list[str]:
    """A part's modules as PEFT can copy them: without modules of another part inside, and no list of modules."""
    others = [name for other in PART_NAMES if other != part for name in parts.modules(other)]
    return [name for module in parts.modules(part) for name in _copyable(model, module, others)]


def _copyable(model: nn.Module, name: str, others: list[str]) -> Iterator[str]:
    module = model.get_submodule(name)
    mixed = any(other.startswith(name + ".") for other in others)
    if not mixed and not isinstance(module, nn.ModuleList | nn.ModuleDict):
        yield name
        return
    if next(module.parameters(recurse=False), None) is not None:
        message = f"{name} has own weights beside a module of another part: it cannot be trained whole without it"
        raise ModelError.one("M038", message, help="set adapter.vision=lora")
    for child, inner in module.named_children():
        if f"{name}.{child}" not in others and next(inner.parameters(), None) is not None:
            yield from _copyable(model, f"{name}.{child}", others)
