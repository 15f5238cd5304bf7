"""What a run stands on, checked before its rows are read: base, adapter, processor.

Usage: ``ground = Ground.of(recipe); ground.placement``
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from qlmm.data.encoding.encoder import Encoder
from qlmm.model.loading.base import Base, Blueprint
from qlmm.model.numerics.quantization import check_experts
from qlmm.model.peft.adapter import Placement, check_variant, place, rehearse
from qlmm.model.peft.warm_start import Earlier
from qlmm.model.token_losses import has_backbone
from qlmm.recipe.schema import Recipe
from qlmm.training.objective import objective, refused

__all__ = ["Ground"]


@dataclass(frozen=True, slots=True)
class Ground:
    """A base and what is trained of it; ``pictures`` is the pixel budget as the processor spells it."""

    base: Base
    earlier: Earlier | None
    placement: Placement
    encoder: Encoder
    pictures: tuple[str, ...]

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """The ground of a recipe's run.

        Raises:
            UsageError: what is wrong with the base, the adapter or the processor.
        """
        check_variant(recipe.adapter, recipe.base.quantize)
        base = Base.resolve(recipe.base)
        shape = base.shape
        _check_objective(recipe, shape)
        check_experts(shape.model, shape.parts, recipe.base.quantize)
        start = recipe.adapter.start_from
        earlier = Earlier.read(Path(start), shape.parts) if start is not None else None
        placement = place(
            shape.model,
            shape.parts,
            recipe.adapter,
            earlier=earlier.whole if earlier else frozenset(),
            keep_bare=objective(recipe.training.objective).reference,
        )
        if earlier is not None:
            earlier.check_base(base.identity)
            earlier.check_scale(recipe.adapter)
            earlier.check_fits(shape.model, shape.parts, placement)
        rehearse(shape.model, placement, recipe.adapter)
        base.check_weights()
        encoder, pictures = base.encoder(recipe.data)
        return cls(base, earlier, placement, encoder, pictures)


def _check_objective(recipe: Recipe, shape: Blueprint) -> None:
    """Refuse an objective on a class whose log-probabilities TRL cannot take."""
    name = recipe.training.objective
    if objective(name).through_head and not has_backbone(shape.model):
        why = f"{name} needs a backbone with a head on top, and {type(shape.model).__name__} has none"
        raise refused("objective", why, "choose another base, or objective sft", "T005")
