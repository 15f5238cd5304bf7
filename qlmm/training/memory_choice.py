"""The settings that make a run fit into a budget of memory, those that cost least speed first.

The order: rows at once and checkpointing, then bitsandbytes' optimizers. As many rows at once as fit, since a pass
costs much however few rows it has; among these, as little checkpointing as fits. The rows of a step stay, so that
losses do.

Usage: ``found = choose(options(recipe, shape.model), lambda one: …, budget)``
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from transformers import GradientCheckpointingLayer, PreTrainedModel

from qlmm.model.inspection.forecast import Load, Optimizer
from qlmm.model.numerics.precision import Precision
from qlmm.proof.records import Chosen
from qlmm.recipe.schema import Recipe
from qlmm.training.load import EVERY, KWARGS, Longest, every, kwargs
from qlmm.training.objective import objective

__all__ = ["applied", "asked", "choose", "loaded", "options", "overrides"]

# A pass of more tokens gains little: on an H100 what a pass costs at once is that of 6,500 tokens.
BUSY_TOKENS = 16_384
# From no checkpointing to all of it: every n-th layer.
STEPS_OF_EVERY = (0, 8, 4, 3, 2, 1)
OPTIMIZERS: tuple[Optimizer, ...] = ("adamw", "adamw_8bit", "paged_adamw_8bit")


def asked(recipe: Recipe) -> Chosen:
    """What a recipe itself says."""
    training = recipe.training
    return Chosen(training.batch_size, training.accumulation, every(training), training.optimizer)


def options(
    recipe: Recipe, model: PreTrainedModel, precision: Precision, longest: Longest, *, apart: bool = False
) -> Iterator[Chosen]:
    """What may be chosen for a recipe, the fastest first; ``apart``: the processor takes these rows one by one only."""
    training = recipe.training
    own = OPTIMIZERS.index(training.optimizer)
    optimizers = OPTIMIZERS[own:] if precision.device == "cuda" else OPTIMIZERS[own : own + 1]
    step = training.batch_size * training.accumulation
    most = max(training.batch_size, BUSY_TOKENS // (longest.tokens * longest.sides))
    sizes = [size for size in range(min(step, most), 0, -1) if step % size == 0]
    if apart or not objective(training.objective).separable(training):
        sizes = [training.batch_size]
    for optimizer in optimizers:
        for size in sizes:
            for n in _checkpointing(recipe, model):
                yield Chosen(size, step // size, n, optimizer)


def _checkpointing(recipe: Recipe, model: PreTrainedModel) -> Iterable[int]:
    """The ways of checkpointing that a model has, the fastest first."""
    if not model.supports_gradient_checkpointing:
        return (0,)
    layers = any(isinstance(module, GradientCheckpointingLayer) for module in model.modules())
    # TRL's pass through a reference forgets which layers are checkpointed.
    if not layers or objective(recipe.training.objective).reference:
        return (0, 1)
    return STEPS_OF_EVERY


def choose(candidates: Iterable[Chosen], needed: Callable[[Chosen], int], budget: int) -> Chosen | None:
    """The first candidate that fits into so many bytes; None where none does."""
    return next((one for one in candidates if needed(one) <= budget), None)


def loaded(given: Load, chosen: Chosen, sides: int) -> Load:
    """What a step is given with other settings."""
    return replace(given, rows=chosen.batch_size * sides, every=chosen.every, optimizer=chosen.optimizer)


def applied(recipe: Recipe, chosen: Chosen) -> Recipe:
    """The recipe with what was chosen."""
    training = recipe.training
    known, extra = kwargs(training), training.extra
    if chosen.every and chosen.every != known.get(EVERY, 1):
        extra = {**extra, KWARGS: {**known, EVERY: chosen.every}}
    changes = {
        "batch_size": chosen.batch_size,
        "accumulation": chosen.accumulation,
        # Passes have so many rows now.
        "tokens_per_batch": None,
        "gradient_checkpointing": chosen.every > 0,
        "optimizer": chosen.optimizer,
        "extra": extra,
    }
    return recipe.model_copy(update={"training": training.model_copy(update=changes)})


def overrides(recipe: Recipe, chosen: Chosen) -> tuple[str, ...]:
    """What was chosen as overrides of the recipe; none where it stays as it is."""
    before, after = recipe.training, applied(recipe, chosen).training
    names = ("batch_size", "accumulation", "optimizer")
    found = [f"training.{name}={vars(after)[name]}" for name in names if vars(after)[name] != vars(before)[name]]
    if before.tokens_per_batch is not None:
        found.append("training.tokens_per_batch=null")
    if before.gradient_checkpointing != after.gradient_checkpointing:
        found.append(f"training.gradient_checkpointing={str(after.gradient_checkpointing).lower()}")
    if before.extra != after.extra:
        found.append(f"training.extra.{KWARGS}.{EVERY}={chosen.every}")
    return tuple(found)
