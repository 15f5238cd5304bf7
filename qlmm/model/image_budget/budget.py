"""How large pictures reach the model: a budget in pixels and tiles, set in the processor's own spelling.

Every family of models spells it differently; ``qlmm.model.image_budget.processors`` has the spellings. A processor
that gives every picture one size follows no budget, and is refused by name.

Usage: ``apply(processor, Budget(max_pixels=1_003_520))`` gives ``("size.longest_edge 1,003,520 pixels",)``
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedModel

from qlmm.model.image_budget.processors import KINDS, Asked, Budget, check_order

__all__ = ["Budget", "agree", "apply", "budgeted"]


def apply(processor: Any, budget: Budget) -> tuple[str, ...]:
    """Make a processor with an ``image_processor`` follow a budget; returns what was set, in words.

    Raises:
        ModelError: M060 when the image processor cannot follow a key of the budget, M061 when the smallest size is
            above the largest, M062 when the largest is less than one tile, patch or token.
    """
    wanted = [key for key, value in asdict(budget).items() if value is not None]
    if not wanted:
        return ()
    pictures, passed = processor.image_processor, _passed(processor)
    merge = vars(processor).get("spatial_merge_size", 1)
    asked = Asked(pictures, {"spatial_merge_size": merge, **vars(pictures), **passed}, budget)
    check_order(budget.min_pixels, budget.max_pixels)
    kind = next((kind for kind in KINDS if kind.fits(asked.facts)), None)
    if kind is None:
        raise asked.refuse(wanted[0], _why_not(asked.facts))
    for key in wanted:
        if key not in kind.follows:
            raise asked.refuse(key, kind.why_not)
    changes = kind.change(asked)
    for name, value in changes.items():
        setattr(pictures, name, value)
    if changes.keys() & passed.keys():
        # Of this processor alone: the class's mapping is shared by all of its kind.
        processor.images_kwargs = {**passed, **{name: changes[name] for name in changes.keys() & passed.keys()}}
    return tuple(words for name, value in changes.items() for words in _said(name, value))


def budgeted(processor: Any, budget: Budget) -> tuple[Any, tuple[str, ...]]:
    """A copy of a processor that follows the budget, and what was set in words; raises as ``apply``."""
    own = copy.copy(processor)
    own.image_processor = copy.deepcopy(processor.image_processor)
    return own, apply(own, budget)


def agree(model: PreTrainedModel, processor: Any) -> None:
    """Give the model the grids of its budgeted processor: LLaVA-NeXT and its descendants read them from both."""
    grids = vars(processor.image_processor).get("image_grid_pinpoints")
    if grids is not None and "image_grid_pinpoints" in vars(model.config):
        model.config.image_grid_pinpoints = [list(grid) for grid in grids]


def _passed(processor: Any) -> dict[str, Any]:
    """What a processor's class passes to its image processor at every call, instead of that one's attributes."""
    try:
        return dict(processor.images_kwargs)
    except AttributeError:
        return {}


def _why_not(facts: Mapping[str, Any]) -> str:
    for name in ("crop_size", "size"):
        size = dict(facts.get(name) or {})
        # A processor that knows the tower's patches may fit pictures into a size instead of giving them that size.
        if "height" in size and "patch_size" not in facts:
            return f"gives every picture the same size, {size['width']} × {size['height']}"
    return "has no setting for it that qlmm knows"


def _said(name: str, value: Any) -> list[str]:
    if name == "size":
        return [f"size.{edge} {length:,} pixels" for edge, length in dict(value).items()]
    if isinstance(value, bool):
        return [f"{name} {'on' if value else 'off'}"]
    return [f"{name}: {len(value)} grids" if isinstance(value, list) else f"{name} {value:,}"]
