"""Which changes of a recipe an unfinished run can take.

A run that goes on must end where it would have ended uninterrupted. So a key is *free* when it changes no number
that training computes, *fork* when it does (the run needs a directory of its own), and *never* when the weights
saved so far would mean something else. What is evaluated is *fork*, since one curve must compare like with like.

Usage: ``refuse(compare(old, new), "runs/owl_lora")``
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qlmm.core.errors import Problem, RecipeError
from qlmm.recipe.schema import Recipe
from qlmm.recipe.schema_keys import as_text
from qlmm.recipe.yaml_reader import KeyPath

__all__ = ["FREE", "NEVER", "Change", "compare", "on_resume", "refuse"]

FREE = """
training.gradient_checkpointing training.device training.workers training.stall_minutes training.log_every
training.save_every training.keep training.tokens_per_batch training.packing training.on_nonfinite output.dir
output.trackers evaluation.every data.max_bad_rows
""".split()  # noqa: SIM905  a table of keys
NEVER = """
version
base.model base.vision base.language base.connector.kind base.vision_layer base.chat_template base.quantize
adapter.variant adapter.language adapter.connector adapter.vision adapter.r adapter.alpha adapter.targets
adapter.start_from
training.objective training.losses
""".split()  # noqa: SIM905  a table of keys
# Free where their product and the loss stay.
_PASSES = frozenset({"training.batch_size", "training.accumulation"})
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Change:
    """One key that differs, such as ``training.seed: 0 → 1``, and what that means for a run that goes on."""

    message: str
    kind: Literal["free", "fork", "never"]


def on_resume(name: str) -> Literal["free", "fork", "never"]:
    """The class of a key of the schema; one that no table names is taken to change numbers."""
    if name in FREE:
        return "free"
    # A connector's settings mean as much as its kind.
    return "never" if name in NEVER or name.startswith("base.connector") else "fork"


def compare(old: Recipe, new: Recipe, *, separable: bool = False) -> list[Change]:
    """Every key whose value differs, in the order of the schema; defaults count as their values.

    Where the loss is `separable`, rows may be spread over more or fewer passes, as long as a step has as many.
    """
    free = _PASSES if separable and old.training.rows_per_step == new.training.rows_per_step else frozenset[str]()
    before, after = dict(_leaves(old.model_dump(), ())), dict(_leaves(new.model_dump(), ()))
    changes = []
    for path in {**before, **after}:
        was, is_now = before.get(path, _ABSENT), after.get(path, _ABSENT)
        if was != is_now:
            name = as_text(path)
            kind = "free" if name in free else on_resume(re.sub(r"\.\d+", "[]", name))
            changes.append(Change(f"{name}: {_shown(was)} → {_shown(is_now)}", kind))
    return changes


def refuse(changes: Sequence[Change], run_dir: str) -> None:
    """Stop a run from going on with a recipe that would lead somewhere else: R040 for every change that is not free."""
    found = [f"{run_dir} was started with another {change.message}" for change in changes if change.kind != "free"]
    if found:
        help = f"go on with the old values, or give the changed recipe a run of its own: output.dir={run_dir}-2"
        *earlier, last = found
        raise RecipeError([*(Problem("R040", message) for message in earlier), Problem("R040", last, help=help)])


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """Leaf values by path; what has no key of its own in the schema (extra, losses, targets, trackers) stays whole."""
    name = as_text(path)
    if isinstance(value, dict) and name not in ("training.extra", "training.losses"):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, tuple | list) and name == "data.sources":
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, value


def _shown(value: Any) -> str:
    if value is _ABSENT or value is None:
        return "unset"
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple | list) else str(value)
