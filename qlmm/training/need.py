"""What a step of a run takes of memory, for its own settings and for others.

Usage: ``need = Need.of(recipe, ground, precision, rows); need.forecast(recipe).total``
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from qlmm.core.units import memory, memory_bytes
from qlmm.model.inspection.forecast import Anatomy, Forecast, Load
from qlmm.model.numerics.precision import Precision
from qlmm.proof.records import Chosen
from qlmm.recipe.schema import Recipe
from qlmm.training.ground import Ground
from qlmm.training.load import Longest, anatomy, load
from qlmm.training.memory_choice import applied, choose, loaded, options
from qlmm.training.objective import refused
from qlmm.training.rows import Rows

__all__ = ["Need"]

# Lengths of rows that are proposed are multiples of this.
ROUND_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Need:
    """A run's model and rows, as far as memory is concerned.

    Attributes:
        longest: what its largest batch is made of.
        counted: whether that is of its own rows, or of the longest that the recipe allows.
        apart: whether the processor takes its rows one by one only.
    """

    ground: Ground
    precision: Precision
    anatomy: Anatomy
    longest: Longest
    counted: bool
    apart: bool

    @classmethod
    def of(cls, recipe: Recipe, ground: Ground, precision: Precision, rows: Rows | None) -> Self:
        """The need of a recipe's run; without rows, of rows as long as it allows."""
        train = rows.train if rows is not None else None
        mixed = train is not None and len({bool(row.images) for row in train.samples}) > 1
        return cls(
            ground=ground,
            precision=precision,
            anatomy=anatomy(recipe, ground.base.shape, ground.placement, precision),
            longest=Longest.of(train.samples, train.lengths) if train is not None else Longest.allowed(recipe),
            counted=train is not None,
            apart=mixed and not ground.encoder.takes_both,
        )

    def load(self, recipe: Recipe) -> Load:
        """What a step is given at most."""
        return load(recipe, self.ground.base.shape.model, self.longest)

    def forecast(self, recipe: Recipe) -> Forecast:
        """What a step takes at its peak."""
        return self.anatomy.forecast(self.load(recipe))

    def options(self, recipe: Recipe) -> list[Chosen]:
        """What may be chosen, the fastest first."""
        return list(options(recipe, self.ground.base.shape.model, self.precision, self.longest, apart=self.apart))

    def needed(self, recipe: Recipe, chosen: Chosen) -> Forecast:
        """What a step takes with other settings."""
        return self.anatomy.forecast(loaded(self.load(recipe), chosen, self.longest.sides))

    def fitting(self, recipe: Recipe, budget: int) -> Chosen | None:
        """The fastest settings that fit into so many bytes; None where none do."""
        return choose(self.options(recipe), lambda one: self.needed(recipe, one).total, budget)

    def smallest(self, recipe: Recipe) -> Chosen:
        """The settings that take least."""
        return min(self.options(recipe), key=lambda one: self.needed(recipe, one).total)

    def proposals(self, recipe: Recipe, budget: int) -> Iterator[str]:
        """Overrides that would make a run fit which no settings make fit; they change what is learned."""
        least, model = applied(recipe, self.smallest(recipe)), self.ground.base.shape.model
        # Shorter rows than a picture takes would leave out what the run is about.
        shortest = self.longest.visual if self.counted else 0
        for tokens in range((self.longest.tokens - 1) // ROUND_TOKENS * ROUND_TOKENS, shortest, -ROUND_TOKENS):
            if self.anatomy.forecast(load(least, model, self.longest.cut(tokens))).total <= budget:
                yield f"data.max_length={tokens}"
                break
        if recipe.base.quantize == "none":
            stored = recipe.model_copy(update={"base": recipe.base.model_copy(update={"quantize": "nf4"})})
            shape = self.ground.base.shape
            smaller = anatomy(stored, shape, self.ground.placement, self.precision)
            if smaller.forecast(self.load(least)).total <= budget:
                yield "base.quantize=nf4"

    def chosen(self, recipe: Recipe) -> Chosen:
        """What is chosen for a recipe's `training.memory`.

        Raises:
            UsageError: T007 where nothing fits.
        """
        asked = str(recipe.training.memory)
        budget = memory_bytes(asked)
        found = self.fitting(recipe, budget)
        if found is None:
            least = self.needed(recipe, self.smallest(recipe)).total
            why = f"{asked} is not enough: the smallest settings take {memory(least)}, {memory(least - budget)} more"
            listed = " or ".join(self.proposals(recipe, budget))
            raise refused("memory", why, f"set {listed}" if listed else "choose a smaller base", "T007")
        return found
