"""A run as it goes: one bar for somebody who watches, plain lines for a log.

Usage: ``with progress(total=260, log_every=10) as listener: train(..., listener)``
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.progress import BarColumn, ProgressColumn, Task, TaskID
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from qlmm.cli.output.console import out
from qlmm.core.events import Answered, Evaluated, Event, Finished, PairsEvaluated, Resumed, Saved, StepDone, Warned
from qlmm.core.units import clock, memory, rate, share

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

__all__ = ["Bar", "Lines", "Progress", "line", "progress"]

PICTURES = {"right": "right picture", "shuffled": "shuffled", "none": "no picture"}
# What of a preference a step shows: TRL's name, ours, and how it is written.
PREFERENCE: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("rewards/margins", "margin", "{:+.2f}".format),
    ("rewards/accuracies", "acc", lambda value: f"{100 * value:.0f} %"),
)


def progress(total: int, *, log_every: int = 1) -> Progress:
    """A listener that shows a run of ``total`` steps: one bar on a terminal, plain lines elsewhere.

    Args:
        total: steps planned.
        log_every: without a bar, steps between lines; the first and the last step are always shown.
    """
    # An earlier bar ends first: two would tear each other.
    out.close()
    live = Bar(out.console(stderr=True), total) if out.interactive else Lines(log_every)
    out.show_beside(live)
    return live


class Progress(ABC):
    """A listener that shows events; ends by itself on :class:`Finished`, or when its ``with`` block is left."""

    #: where other lines must be printed while this one is open, so that they do not tear a bar
    console: Console | None = None

    @abstractmethod
    def __call__(self, event: Event) -> None:
        """Show one event."""

    @abstractmethod
    def close(self) -> None:
        """Leave the terminal as it was."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _print(event: Event) -> None:
    if isinstance(event, Warned):
        out.warn(event.message)
    else:
        out.talk(line(event))


class Lines(Progress):
    """Plain lines: the first step seen, every ``log_every``-th, the last, and everything that is not a step."""

    def __init__(self, log_every: int) -> None:
        self._log_every = log_every
        self._started = False

    def __call__(self, event: Event) -> None:
        """Print one line, or none for a step between two log points."""
        if not isinstance(event, StepDone) or self._due(event):
            _print(event)

    def close(self) -> None:
        """Nothing to do: every line is complete."""

    def _due(self, event: StepDone) -> bool:
        first, self._started = not self._started, True
        return first or event.step % self._log_every == 0 or event.step == event.total


class Bar(Progress):
    """One bar that stays at the bottom; evaluations, saves and warnings scroll past above it."""

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self._bar = RichProgress(
            BarColumn(bar_width=None, complete_style="cyan", table_column=Column(ratio=1)),
            _Numbers(),
            console=console,
            expand=True,
            # Four times a second is smooth enough and leaves the processor to the training.
            refresh_per_second=4,
        )
        self._task: TaskID = self._bar.add_task("train", total=total, numbers="starting")

    def __call__(self, event: Event) -> None:
        """Move the bar, or print one line above it."""
        if isinstance(event, StepDone):
            self._bar.start()
            self._bar.update(self._task, completed=event.step, total=event.total, numbers=numbers(event))
            return
        if isinstance(event, Finished):
            self.close()
        _print(event)

    def close(self) -> None:
        """Stop redrawing; the bar's last state stays on the screen."""
        self._bar.stop()


class _Numbers(ProgressColumn):
    """What the last step measured, right of the bar."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:.0f}/{task.total:.0f}  {task.fields['numbers']}", no_wrap=True)


def numbers(event: StepDone) -> str:
    """A step's measurements, short enough to leave room for a bar in 80 columns.

    Of a step on pairs, what became of the preference stands in the place of memory, which hardly changes.
    """
    loss, speed, left = (
        f"loss {event.loss:.3f}",
        f"{rate(event.tokens_per_s)} tok/s",
        f"{clock(event.seconds_left)} left",
    )
    preference = [f"{name} {form(event.metrics[key])}" for key, name, form in PREFERENCE if key in event.metrics]
    return "  ".join(
        [loss, *preference, speed, left] if preference else [loss, speed, memory(event.memory_bytes), left]
    )


def line(event: Event) -> str:
    """One event as one line of a log."""
    if isinstance(event, StepDone):
        rates = " ".join(f"{part} {value:.1e}" for part, value in event.rates.items())
        width = len(str(event.total))
        tail = "" if any(key in event.metrics for key, _, _ in PREFERENCE) else f"  lr {rates}"
        return f"step {event.step:>{width}}/{event.total}  {numbers(event)}{tail}"
    if isinstance(event, Evaluated):
        losses = ", ".join(f"{PICTURES.get(key, key)} {value:.3f}" for key, value in event.losses.items())
        return f"step {event.step}: held-out loss {losses}"
    if isinstance(event, PairsEvaluated):
        return f"step {event.step}: held-out pairs {_pairs(event)}"
    return _happening(event)


def _pairs(event: PairsEvaluated) -> str:
    parts = [f"won {share(event.won)}"]
    if event.won_swapped is not None:
        parts.append(f"{PICTURES['shuffled']} {share(event.won_swapped)}")
    parts.append(f"margin {event.margin:+.2f}")
    return ", ".join([*parts, f"KL {event.kl:.4f}"] if event.kl is not None else parts)


def _happening(event: Event) -> str:
    if isinstance(event, Saved):
        return f"step {event.step}: saved {event.folder}"
    if isinstance(event, Resumed):
        return f"continuing from step {event.step} ({event.folder})"
    if isinstance(event, Answered):
        return f"answered {event.rows} held-out questions {event.phase} training"
    if isinstance(event, Finished):
        return f"finished {event.step} steps in {clock(event.seconds)}"
    return f"warning: {event.message}" if isinstance(event, Warned) else repr(event)
