"""Mixtures of experts: which weights are experts, which layers route to them.

transformers keeps the experts of a layer in fused three-dimensional parameters. bitsandbytes quantises linear layers
only, and LoRA reaches such parameters only through PEFT's `target_parameters`.

Usage: ``fused_experts(model, parts)  # ("model.language_model.layers.0.mlp.experts.gate_up_proj", …)``
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from qlmm.model.parts.split import Parts

__all__ = ["expert_layers", "fused_experts", "routers"]

_LISTED = re.compile(r"\.experts\.\d+\.")


def fused_experts(model: nn.Module, parts: Parts) -> tuple[str, ...]:
    """Full names of the language model's fused expert weights, each (experts, inputs, outputs) or its transpose."""
    return tuple(
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3 and "expert" in name and parts.of(name) == "language"
    )


def expert_layers(names: list[str]) -> list[str]:
    """Those linear layers that belong to single experts in a list of modules."""
    return [name for name in names if _LISTED.search(f"{name}.")]


def routers(model: nn.Module, parts: Parts) -> set[str]:
    """Linear layers that choose or weigh experts; quantised or adapted, they would send tokens elsewhere."""
    return {name for module in parts.language for name in _routers(model, module)}


def _routers(model: nn.Module, module: str) -> Iterator[str]:
    for name, block in model.get_submodule(module).named_modules():
        children = dict(block.named_children())
        if "experts" not in children:
            continue
        experts = children["experts"]
        fused = [parameter.shape[0] for parameter in experts.parameters(recurse=False) if parameter.ndim == 3]
        choices = {1, fused[0] if fused else len(list(experts.children()))}
        for child, layer in children.items():
            if isinstance(layer, nn.Linear) and layer.out_features in choices:
                yield ".".join(filter(None, (module, name, child)))
