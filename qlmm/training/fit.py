"""The memory of a run before it is planned, and the settings that make it fit; no weight is read, nothing is written.

Usage: ``facts = fit(recipe, Wish.of_size("12GB")); facts.parts, facts.chosen``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from qlmm.core.units import memory_bytes
from qlmm.model.inspection.cards import Card, card
from qlmm.model.inspection.forecast import Forecast, MemoryPart
from qlmm.model.numerics.precision import Precision, choose
from qlmm.proof.records import Chosen
from qlmm.recipe.schema import Recipe, Source, TrainingSection
from qlmm.training.ground import Ground
from qlmm.training.memory_choice import applied, overrides
from qlmm.training.need import Need
from qlmm.training.rows import read_rows

__all__ = ["FitFacts", "Wish", "fit"]

BUILTIN = "builtin:"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a run should fit into: so many bytes, as they were named, of a card or of this machine's device."""

    bytes: int
    named: str
    card: Card | None = None

    @classmethod
    def of_size(cls, size: str) -> Self:
        """So much of this machine's device; ValueError for what is no size."""
        return cls(memory_bytes(size), size)

    @classmethod
    def of_card(cls, name: str) -> Self:
        """All of a card; U041 for one that is not known."""
        found = card(name)
        return cls(found.memory_bytes, found.name, found)


@dataclass(frozen=True, slots=True)
class FitFacts:
    """The memory of a run.

    Attributes:
        rows: per forward pass.
        tokens: of the longest row.
        counted: whether the processor counted them in the recipe's rows, which are else not here.
        parts: the forecast for the recipe, or for what was chosen.
        budget: as it was named; None where none was asked for.
        fits: whether the forecast is within the budget.
        chosen: what was chosen, as overrides; none where the recipe stays as it is.
        missing_bytes: by how much the smallest settings are too large.
        proposals: overrides that would make it fit and change what is learned; none of them is chosen.
    """

    base: str
    device: str
    precision: str
    rows: int
    accumulation: int
    checkpointed: int
    optimizer: str
    tokens: int
    counted: bool
    parts: tuple[MemoryPart, ...]
    total_bytes: int
    budget: str | None
    budget_bytes: int | None
    fits: bool | None
    chosen: tuple[str, ...]
    missing_bytes: int
    proposals: tuple[str, ...]


def fit(recipe: Recipe, wish: Wish | None = None) -> FitFacts:
    """The memory of a recipe's run on this machine or on a card, and the fastest settings that fit into what is wished.

    Without a wish it is the recipe's own `training.memory`, where it has one.

    Raises:
        UsageError: what is wrong with recipe, base or rows.
    """
    if wish is None and recipe.training.memory is not None:
        wish = Wish.of_size(recipe.training.memory)
    precision = _precision(recipe.training, wish.card if wish is not None else None)
    ground = Ground.of(recipe)
    data = (*recipe.data.sources, *recipe.evaluation.sources)
    rows = read_rows(recipe, ground.encoder) if _here(data) else None
    need = Need.of(recipe, ground, precision, rows)
    if wish is None:
        return _facts(recipe, need, need.forecast(recipe))
    found = need.fitting(recipe, wish.bytes)
    least = found or need.smallest(recipe)
    return _facts(recipe, need, need.needed(recipe, least), wish, least)


def _precision(training: TrainingSection, card: Card | None) -> Precision:
    """Where and in what precision the run would compute: on the card that is named, else as its plan says.

    A GPU that the recipe demands and this machine lacks is taken to be a usual one.
    """
    if card is None and (training.device != "cuda" or torch.cuda.is_available()):
        return choose(training.device, training.precision)
    if training.precision != "auto":
        return Precision("cuda", training.precision)
    return Precision("cuda", "bf16" if card is None or card.bf16 else "fp16")


def _here(sources: Sequence[Source]) -> bool:
    """Whether the rows are on this machine; a data set of the Hub is not fetched for a forecast."""
    return all(one.path.startswith(BUILTIN) or Path(one.path).exists() for one in sources)


def _facts(
    recipe: Recipe, need: Need, forecast: Forecast, wish: Wish | None = None, chosen: Chosen | None = None
) -> FitFacts:
    fitted = applied(recipe, chosen) if chosen is not None else recipe
    load = need.load(fitted)
    over = max(0, forecast.total - wish.bytes) if wish is not None else 0
    card = f"{wish.card.name}, {wish.card.gib} GiB" if wish is not None and wish.card is not None else None
    return FitFacts(
        base=need.ground.base.name,
        device=card or need.precision.device,
        precision=need.precision.name,
        rows=load.rows // need.longest.sides,
        accumulation=fitted.training.accumulation,
        checkpointed=load.every,
        optimizer=load.optimizer,
        tokens=load.tokens,
        counted=need.counted,
        parts=forecast.parts,
        total_bytes=forecast.total,
        budget=wish.named if wish is not None else None,
        budget_bytes=wish.bytes if wish is not None else None,
        fits=not over if wish is not None else None,
        chosen=overrides(recipe, chosen) if chosen is not None else (),
        missing_bytes=over,
        proposals=tuple(need.proposals(recipe, wish.bytes)) if over and wish is not None else (),
    )
