"""A run as it goes: one bar for somebody who watches, plain lines for a log.

Usage: ``with Progress(log_every=10) as listener: train(..., listener)``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from qlmm.cli.output.console import out
from qlmm.core.events import (
    Answered,
    Evaluated,
    Event,
    Finished,
    PairsEvaluated,
    Resumed,
    RowLeftOut,
    Saved,
    StepDone,
    StepSkipped,
    Warned,
)
from qlmm.core.units import clock, memory, rate, share

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Progress", "line"]

PICTURES = {"right": "right picture", "shuffled": "shuffled", "none": "no picture"}
# What of a preference a step shows: TRL's name, ours, and how it is written.
PREFERENCE: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("rewards/margins", "margin", "{:+.2f}".format),
    ("rewards/accuracies", "acc", lambda value: f"{100 * value:.0f} %"),
)


class Progress:
    """A listener that shows events: one bar at the bottom of a terminal, with all else above it; plain lines elsewhere.

    Without a bar the first step seen, every ``log_every``-th and the last have a line.
    """

    def __init__(self, log_every: int = 1) -> None:
        self._log_every = log_every
        self._started = False
        self._bar: Bar | None = None

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, StepDone):
            self._step(event)
            return
        if isinstance(event, Finished):
            out.close()
        if isinstance(event, Warned):
            out.warn(event.message)
        else:
            out.note(line(event))

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        out.close()

    def _step(self, event: StepDone) -> None:
        first, self._started = not self._started, True
        if not out.interactive:
            if first or event.step % self._log_every == 0 or event.step == event.total:
                out.note(line(event))
            return
        self._bar = self._bar or _new_bar(event.total)
        self._bar.start()
        self._bar.update(TaskID(0), completed=event.step, total=event.total, numbers=numbers(event))


def _new_bar(total: int) -> Bar:
    # An earlier bar ends first: two would tear each other.
    out.close()
    # Four times a second is smooth enough and leaves the processor to the training.
    bar = Bar(
        BarColumn(bar_width=None, complete_style="cyan", table_column=Column(ratio=1)),
        TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[numbers]}", markup=False),
        console=out.console(stderr=True),
        expand=True,
        refresh_per_second=4,
    )
    bar.add_task("train", total=total, numbers="")
    out.show_beside(bar)
    return bar


def numbers(event: StepDone) -> str:
    """A step's measurements, short enough to leave room for a bar in 80 columns."""
    preference = [f"{name} {form(event.metrics[key])}" for key, name, form in PREFERENCE if key in event.metrics]
    speed, left = f"{rate(event.tokens_per_s)} tok/s", f"{clock(event.seconds_left)} left"
    # Memory, which hardly changes, makes room for the preference.
    middle = [*preference, speed] if preference else [speed, memory(event.memory_bytes)]
    return "  ".join([f"loss {event.loss:.3f}", *middle, left])


def line(event: Event) -> str:
    """One event as one line of a log."""
    match event:
        case StepDone():
            text = _step(event)
        case StepSkipped(why=why) | RowLeftOut(why=why):
            text = f"not taken: {why}"
        case Evaluated(step, losses):
            listed = ", ".join(f"{PICTURES.get(key, key)} {value:.3f}" for key, value in losses.items())
            text = f"step {step}: held-out loss {listed}"
        case PairsEvaluated(step):
            text = f"step {step}: held-out pairs {_pairs(event)}"
        case Saved(step, folder):
            text = f"step {step}: saved {folder}"
        case Resumed(step, folder):
            text = f"continuing from step {step} ({folder})"
        case Answered(phase, rows):
            text = f"answered {rows} held-out questions {phase} training"
        case Finished(step, seconds):
            text = f"finished {step} steps in {clock(seconds)}"
        case Warned(message):
            text = f"warning: {message}"
        case _:
            text = repr(event)
    return text


def _step(event: StepDone) -> str:
    rates = " ".join(f"{part} {value:.1e}" for part, value in event.rates.items())
    tail = "" if any(key in event.metrics for key, _, _ in PREFERENCE) else f"  lr {rates}"
    return f"step {event.step:>{len(str(event.total))}}/{event.total}  {numbers(event)}{tail}"


def _pairs(event: PairsEvaluated) -> str:
    swapped = [f"{PICTURES['shuffled']} {share(event.won_swapped)}"] if event.won_swapped is not None else []
    distance = [f"KL {event.kl:.4f}"] if event.kl is not None else []
    return ", ".join([f"won {share(event.won)}", *swapped, f"margin {event.margin:+.2f}", *distance])
