"""Which changes of a recipe an unfinished run can take.

A run that goes on must end where it would have ended uninterrupted. So a key is *free* when it changes no number
that training computes, *fork* when it does (the run needs a directory of its own), and *never* when the weights
saved so far would not even mean the same thing.

Usage: ``changes = compare(old, new); refuse(changes, "runs/owl_lora")``
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qlmm.core.errors import Problem, RecipeError
from qlmm.recipe.schema import Recipe
from qlmm.recipe.schema_keys import as_text
from qlmm.recipe.yaml_reader import KeyPath

__all__ = ["CLASSES", "Change", "ChangeClass", "compare", "refuse"]

ChangeClass = Literal["free", "fork", "never"]

_FREE = """
training.gradient_checkpointing training.device training.workers training.log_every training.save_every training.keep
output.dir output.trackers evaluation.every
"""

# Steps and epochs are here because the schedule of the rates is laid out over all of them. How much is evaluated
# is here because one curve, and one pair of answers before and after, must compare like with like.
_FORK = """
adapter.dropout
data.sources[].path data.sources[].format data.sources[].split data.sources[].image_root data.sources[].weight
data.sources[].limit data.text_ratio data.max_length data.overlong data.max_bad_rows data.max_pixels data.min_pixels
data.max_tiles data.max_frames
training.epochs training.steps training.batch_size training.accumulation training.learning_rate
training.connector_learning_rate training.vision_learning_rate training.schedule training.warmup training.optimizer
training.reuse training.precision training.seed training.extra
evaluation.sources evaluation.rows evaluation.answers evaluation.max_new_tokens
"""

_NEVER = """
version
base.model base.vision base.language base.connector.kind base.vision_layer base.chat_template base.quantize
adapter.variant adapter.language adapter.connector adapter.vision adapter.r adapter.alpha adapter.targets
adapter.start_from
training.objective training.losses
"""

CLASSES: Mapping[str, ChangeClass] = {
    **dict.fromkeys(_FREE.split(), "free"),
    **dict.fromkeys(_FORK.split(), "fork"),
    **dict.fromkeys(_NEVER.split(), "never"),
}
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Change:
    """One key that differs: its dotted name, both values, and what that means for a run that goes on."""

    key: str
    old: Any
    new: Any
    kind: ChangeClass

    @property
    def message(self) -> str:
        """``training.seed: 0 → 1``."""
        return f"{self.key}: {_shown(self.old)} → {_shown(self.new)}"


def compare(old: Recipe, new: Recipe) -> list[Change]:
    """Every key whose value differs, in the order of the schema; defaults count as their values."""
    before, after = dict(_leaves(old.model_dump(), ())), dict(_leaves(new.model_dump(), ()))
    return [
        Change(as_text(path), before.get(path, _ABSENT), after.get(path, _ABSENT), _kind(path))
        for path in {**before, **after}
        if before.get(path, _ABSENT) != after.get(path, _ABSENT)
    ]


def refuse(changes: Sequence[Change], run_dir: str) -> None:
    """Stop a run from going on with a recipe that would lead somewhere else.

    Raises:
        RecipeError: R040 naming every change that is not free, old → new.
    """
    binding = [change for change in changes if change.kind != "free"]
    if not binding:
        return
    help = f"go on with the old values, or give the changed recipe a run of its own: output.dir={run_dir}-2"
    raise RecipeError(
        [Problem("R040", f"{run_dir} was started with another {change.message}") for change in binding[:-1]]
        + [Problem("R040", f"{run_dir} was started with another {binding[-1].message}", help=help)]
    )


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


def _kind(path: KeyPath) -> ChangeClass:
    """The class of a leaf: entries of a list share one, and a connector's settings have that of its kind."""
    name = re.sub(r"\.\d+", "[]", as_text(path))
    if name.startswith("base.connector"):
        return CLASSES["base.connector.kind"]
    return CLASSES[name]


def _shown(value: Any) -> str:
    if value is _ABSENT or value is None:
        return "unset"
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple | list) else str(value)
