"""When memory does not suffice: what counts as that, how to try without a trace, and what a recipe could change.

Usage: ``with untouched(trainer, model): …``; ``raise no_memory(plan, step, rows)``
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from qlmm.compat.accelerate_private import should_reduce_batch_size
from qlmm.compat.trl_private import figures_kept
from qlmm.core.errors import RunError
from qlmm.core.units import memory
from qlmm.model.inspection.memory import Load, estimate
from qlmm.training.plan import Plan, expected_load

__all__ = ["no_memory", "out_of_memory", "untouched"]


def out_of_memory(error: Exception) -> bool:
    """Whether an error is that a GPU or this machine has no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(should_reduce_batch_size(error))


@contextmanager
def untouched(trainer: Any, model: torch.nn.Module) -> Iterator[None]:
    """Put back random numbers, running statistics and TRL's figures when the block is left."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(), figures_kept(trainer):
        yield
    for buffer, before in buffers:
        buffer.copy_(before)


def no_memory(plan: Plan, step: int, rows: int) -> RunError:
    """RunError G003, with what each change of the recipe would save; cheapest first."""
    load = expected_load(plan.recipe, plan.precision, plan.train, plan.facts.tokens.max)
    load = replace(load, rows=max(1, load.rows * rows // plan.recipe.training.rows_at_once))
    whole = _bytes(plan, load)
    saved = {name: whole - _bytes(plan, other) for name, other in _changes(plan, load).items()}
    listed = ", ".join(f"{name} (about {memory(size)})" for name, size in saved.items() if size > 0)
    more = "" if rows == 1 else "lower training.batch_size (the loss compares the rows of a batch); "
    device = "the GPU" if plan.precision.device == "cuda" else "this machine"
    rows_named = "1 row" if rows == 1 else f"{rows} rows"
    return RunError.one(
        "G003",
        f"{device} is out of memory at step {step} with {rows_named} at once; checkpoints sealed before are intact",
        help=f"{more}what a change would save, by estimate: {listed or 'nothing known; choose a smaller base'}",
    )


def _bytes(plan: Plan, load: Load) -> int:
    return sum(estimate(plan.base.shape.model, plan.base.shape.parts, plan.placement, load).values())


def _changes(plan: Plan, load: Load) -> dict[str, Load]:
    """Changes that would save memory; the first costs time only."""
    shorter = load.tokens // 2
    changes = {
        "training.gradient_checkpointing=true": replace(load, checkpointing=True),
        f"data.max_length={shorter}": replace(load, tokens=shorter),
        "base.quantize=nf4": replace(load, quantize="nf4"),
    }
    if plan.precision.device == "cuda":
        changes["training.optimizer=paged_adamw_8bit"] = replace(load, small_optimizer=True)
    return changes
