"""Trackers as one callback of the trainer: a tracker that raises is told of and let go, and the run goes on.

Usage: ``Trackers(recipe.output.trackers, lost)`` as a callback of the trainer
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from operator import methodcaller
from traceback import format_exception_only
from typing import Any

from transformers import PreTrainedConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qlmm.compat.transformers_private import tracker_kind
from qlmm.core.secrets import redact_values, shortened, visible

__all__ = ["Trackers"]

LONGEST_REASON = 200
EVENTS = tuple(name for name in vars(TrainerCallback) if name.startswith("on_"))


class Trackers(TrainerCallback):
    """Passes every event of the trainer on to each tracker, until that tracker raises.

    Trackers are made at their first event, since making one imports its package, which can fail as well. `lost` is
    told once about each that raised: its name, since when, and why.
    """

    def __init__(self, names: Iterable[str], lost: Callable[[str], None]) -> None:
        self._left: dict[str, TrainerCallback | None] = dict.fromkeys(names)
        self._lost = lost

    def pass_on(
        self, event: str, args: TrainingArguments, state: TrainerState, control: TrainerControl, **found: Any
    ) -> None:
        """Tell every tracker that is left about an event; of the base's configuration they see no access keys."""
        if self._left and "model" in found:
            found["model"] = copy(found["model"])
            found["model"].config = _without_keys(found["model"].config)
        for name, made in list(self._left.items()):
            try:
                self._left[name] = tracker = made if made is not None else tracker_kind(name)()
                methodcaller(event, args, state, control, **found)(tracker)
            except Exception as error:  # noqa: BLE001  foreign code, whose errors have no class in common
                del self._left[name]
                self._lost(f"tracker {name} gets nothing after step {state.global_step}: {_reason(error)}")


def _without_keys(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of a configuration, and of those in it, without access keys: its author may have written one into it."""
    shown = copy(config)
    for name, value in vars(config).items():
        vars(shown)[name] = _without_keys(value) if isinstance(value, PreTrainedConfig) else redact_values(value)
    return shown


def _reason(error: Exception) -> str:
    """An error as one short line."""
    return shortened(" ".join(visible("".join(format_exception_only(error))).split()), LONGEST_REASON)


def _hook(event: str) -> Callable[..., None]:
    def hook(self: Trackers, *args: Any, **found: Any) -> None:
        self.pass_on(event, *args, **found)

    return hook


for _event in EVENTS:
    setattr(Trackers, _event, _hook(_event))
