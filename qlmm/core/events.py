"""What happens during a run, as typed events; console, metrics.jsonl and plots all consume the same ones.

Usage: ``listener(StepDone(step=10, total=260, loss=2.1, ...))``
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "Answered",
    "Evaluated",
    "Event",
    "Finished",
    "Listener",
    "PairsEvaluated",
    "Resumed",
    "RowLeftOut",
    "Saved",
    "StepDone",
    "StepSkipped",
    "Warned",
]


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True, slots=True)
class StepDone(Event):
    """An optimiser step was taken; ``step`` counts from 1, ``total`` are planned.

    Attributes:
        loss: mean over the step's supervised tokens, nats; the true value, finite or not.
        rates: learning rate per part (language, connector, vision).
        grad_norms: gradient norm per part, before clipping.
        tokens_per_s: visual tokens included, since the last event.
        memory_bytes: peak memory of the device, or of the process on CPU.
        metrics: what else the objective measured on the step's rows, by TRL's names, such as ``rewards/margins``.
    """

    step: int
    total: int
    loss: float
    rates: dict[str, float]
    grad_norms: dict[str, float]
    tokens_per_s: float
    memory_bytes: int
    seconds_left: float
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class StepSkipped(Event):
    """A step was not taken, since its loss or a gradient is not finite or it has no row left; no weight changed."""

    step: int
    why: str


@dataclass(frozen=True, slots=True)
class RowLeftOut(Event):
    """A row has no part in the loss from that step on, as long as its picture cannot be read.

    ``why`` names the row, too.
    """

    step: int
    file: str
    line: int
    why: str


@dataclass(frozen=True, slots=True)
class Evaluated(Event):
    """Loss on held-out rows, nats per token: keys ``right``, ``shuffled`` and ``none`` name the picture shown."""

    step: int
    losses: dict[str, float]


@dataclass(frozen=True, slots=True)
class PairsEvaluated(Event):
    """Held-out pairs were measured; :class:`qlmm.proof.records.PairProof` explains the figures."""

    step: int
    won: float
    margin: float
    won_swapped: float | None
    margin_swapped: float | None
    kl: float | None


@dataclass(frozen=True, slots=True)
class Saved(Event):
    """A checkpoint was sealed."""

    step: int
    folder: str


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """The run goes on from a sealed checkpoint."""

    step: int
    folder: str


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """Something the user should know that does not end the run."""

    message: str


@dataclass(frozen=True, slots=True)
class Answered(Event):
    """Held-out pictures were answered; ``phase`` is ``before`` or ``after`` training."""

    phase: str
    rows: int


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """The last step was taken and everything is written."""

    step: int
    seconds: float


Listener = Callable[[Event], None]
