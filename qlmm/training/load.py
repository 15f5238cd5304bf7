"""What a step of a run has in memory, as the forecast wants it: from a recipe and the lengths of its rows.

Usage: ``anatomy(recipe, shape, placement, precision).forecast(load(recipe, shape.model, Longest.of(rows, lengths)))``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from transformers import PreTrainedModel

from qlmm.data.encoding.length_limit import Lengths
from qlmm.data.sample import Example, Preference
from qlmm.model.inspection.forecast import Anatomy, Load, patches
from qlmm.model.loading.base import Blueprint
from qlmm.model.numerics.precision import Precision
from qlmm.model.peft.adapter import Placement
from qlmm.recipe.schema import Recipe, TrainingSection
from qlmm.training.objective import objective

__all__ = ["EVERY", "KWARGS", "Longest", "anatomy", "every", "kwargs", "load"]

# Transformers' names, below `training.extra`, for checkpointing every n-th layer only.
EVERY, KWARGS = "every_n_layers", "gradient_checkpointing_kwargs"


@dataclass(frozen=True, slots=True)
class Longest:
    """What the largest batch of a run is made of.

    Attributes:
        tokens: of the longest row, which all rows of its batch are padded to.
        supervised: most tokens of a row that have a loss.
        visual: most visual tokens of a row.
        pictures: most pictures of a row.
        sides: 2 for pairs, whose answers are two rows where they cannot share their prompt; else 1.
    """

    tokens: int
    supervised: int
    visual: int
    pictures: int
    sides: int

    @classmethod
    def of(cls, rows: Sequence[Example], lengths: Sequence[Lengths]) -> Self:
        """Of rows that were counted."""
        sides = 2 if any(isinstance(row, Preference) for row in rows) else 1
        return cls(
            tokens=max(one.total for one in lengths),
            supervised=-(-max(one.supervised for one in lengths) // sides),
            visual=max(one.visual for one in lengths),
            pictures=max(len(row.images) for row in rows),
            sides=sides,
        )

    def cut(self, tokens: int) -> Self:
        """The same where no row is longer than that."""
        visual, supervised = min(self.visual, tokens), min(self.supervised, tokens)
        return replace(self, tokens=tokens, visual=visual, supervised=supervised)

    @classmethod
    def allowed(cls, recipe: Recipe) -> Self:
        """Of rows that are not here: as long as the recipe allows, half of it one picture, and all of it learned."""
        most, pairs = recipe.data.max_length, objective(recipe.training.objective).rows == "preference"
        return cls(tokens=most, supervised=most, visual=most // 2, pictures=1, sides=2 if pairs else 1)


def every(training: TrainingSection) -> int:
    """Which layers are checkpointed: every n-th; 0 for none."""
    return kwargs(training).get(EVERY, 1) if training.gradient_checkpointing else 0


def kwargs(training: TrainingSection) -> dict[str, int]:
    """How layers are checkpointed, as transformers is told; what it would refuse is left out."""
    given = training.extra.get(KWARGS)
    return {name: one for name, one in given.items() if isinstance(one, int)} if isinstance(given, dict) else {}


def load(recipe: Recipe, model: PreTrainedModel, longest: Longest) -> Load:
    """What a step of a recipe is given at most."""
    training, rows = recipe.training, recipe.training.batch_size
    if training.tokens_per_batch is not None:
        rows = min(training.rows_per_step, max(1, training.tokens_per_batch // (longest.tokens * longest.sides)))
    return Load(
        rows=rows * longest.sides,
        tokens=longest.tokens,
        supervised=longest.supervised,
        patches=patches(model, longest.pictures, longest.visual),
        every=every(training),
        optimizer=training.optimizer,
    )


def anatomy(recipe: Recipe, shape: Blueprint, placement: Placement, precision: Precision) -> Anatomy:
    """A recipe's model, adapter and precision, as the forecast wants them."""
    known = objective(recipe.training.objective)
    return Anatomy.of(
        shape.model,
        shape.parts,
        placement,
        precision,
        recipe.base.quantize,
        # TRL switches LoRA's dropout off where answers are compared.
        dropout=recipe.adapter.dropout > 0 and known.rows == "conversation",
        reference=known.reference,
    )
