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
from qlmm.model.inspection.forecast import Load
from qlmm.training.load import anatomy as stored_so
from qlmm.training.plan import Plan

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
    load = plan.need.load(plan.recipe)
    load = replace(load, rows=max(1, load.rows * rows // plan.recipe.training.rows_at_once))
    whole = plan.need.anatomy.forecast(load).total
    saved = {name: whole - size for name, size in _changed(plan, load).items()}
    listed = ", ".join(f"{name} (about {memory(size)})" for name, size in saved.items() if size > 0)
    more = "" if rows == 1 else "lower training.batch_size (the loss compares the rows of a batch); "
    device = "the GPU" if plan.precision.device == "cuda" else "this machine"
    rows_named = "1 row" if rows == 1 else f"{rows} rows"
    return RunError.one(
        "G003",
        f"{device} is out of memory at step {step} with {rows_named} at once; checkpoints sealed before are intact",
        help=f"{more}what a change would save, by estimate: {listed or 'nothing known; choose a smaller base'}",
    )


def _changed(plan: Plan, load: Load) -> dict[str, int]:
    """What a step would take after changes that save memory; the first costs time only."""
    shorter, anatomy = load.tokens // 2, plan.need.anatomy
    loads = {
        "training.gradient_checkpointing=true": replace(load, every=1),
        f"data.max_length={shorter}": replace(load, tokens=shorter, supervised=min(load.supervised, shorter)),
    }
    if plan.precision.device == "cuda":
        loads["training.optimizer=paged_adamw_8bit"] = replace(load, optimizer="paged_adamw_8bit")
    sizes = {name: anatomy.forecast(one).total for name, one in loads.items()}
    recipe = plan.recipe.model_copy(update={"base": plan.recipe.base.model_copy(update={"quantize": "nf4"})})
    stored = stored_so(recipe, plan.base.shape, plan.placement, plan.precision)
    return {**sizes, "base.quantize=nf4": stored.forecast(load).total}
