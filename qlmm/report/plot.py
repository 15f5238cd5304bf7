"""The curves of a run: training thin and smoothed, held-out rows by the picture that was shown.

A run on preferences has a figure of its own, since the loss shows little there.

Usage: ``files.atomic_write(folder / "loss.png", loss_png(read_metrics(folder / "metrics.jsonl")))``
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from qlmm.core.events import Evaluated, Event, PairsEvaluated, StepDone

__all__ = ["loss_png", "preferences_png"]

SIZE_INCHES = (8.4, 4.2)
PANELS_INCHES = (10.5, 3.1)  # of one row of two
DOTS_PER_INCH = 160
SMOOTHING_SHARE = 0.04  # of the steps; wide enough to calm a batch of one, narrow enough to keep a bump
TRAINING, RIGHT, SHUFFLED, NONE = "training", "right picture", "shuffled pictures", "no picture"
LABEL_GAP_INCHES = 0.22  # the least distance between two labels


@dataclass(frozen=True, slots=True)
class Colours:
    """A page's colours and one per curve, which colour-blind readers can tell from each other (Okabe and Ito)."""

    page: str
    text: str
    grid: str
    train: str
    right: str
    shuffled: str
    none: str


LIGHT = Colours("#ffffff", "#2b2f36", "#e6e8ec", "#8a919e", "#0072b2", "#d55e00", "#8d6ab8")
DARK = Colours("#16181d", "#d5d9e0", "#2a2e36", "#8a919e", "#56b4e9", "#f0863c", "#b79ae0")


@dataclass(frozen=True, slots=True)
class Curve:
    """Points to draw, steps against a figure, all of them finite."""

    name: str
    colour: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One of several pictures in a figure: curves of training steps, which are smoothed, and of held-out rows."""

    title: str
    unit: str
    steps: tuple[Curve, ...]
    held_out: tuple[Curve, ...]


def loss_png(metrics: Sequence[Event], *, dark: bool = False) -> bytes:
    """The loss of a run's events as a PNG of 1,344 x 672 pixels; without any step the axes say that there is none."""
    colours = DARK if dark else LIGHT
    figure = _figure(SIZE_INCHES, colours)
    axes = figure.add_subplot()
    steps = [event for event in metrics if isinstance(event, StepDone)]
    held_out = _held_out(metrics, colours)
    # A loss over pairs is of another kind than that of held-out answers, and is drawn with the preferences.
    apart = held_out and any(_on_pairs(event) for event in steps)
    panel = Panel("", "loss, nats per token", () if apart else _drawn([_loss(steps, colours)]), held_out)
    _fill(axes, colours, panel)
    if panel.steps or panel.held_out:
        _mark_lost(axes, colours, [event.step for event in steps if not math.isfinite(event.loss)])
    else:
        axes.text(0.5, 0.5, "no step was taken", transform=axes.transAxes, ha="center", color=colours.text)
    return _png(figure)


def preferences_png(metrics: Sequence[Event], *, dark: bool = False) -> bytes | None:
    """The course of the preferences, as a PNG of 1,680 pixels' width, or None for a run that measured none.

    There is a panel for each thing that was measured: the loss, held-out pairs won with right and with shuffled
    pictures, rewards of the training rows, log-probabilities of their answers (the chosen one's may well fall), and the
    distance from the reference.
    """
    colours = DARK if dark else LIGHT
    panels = [panel for panel in _panels(metrics, colours) if panel.steps or panel.held_out]
    if not panels:
        return None
    lines = (len(panels) + 1) // 2
    figure = _figure((PANELS_INCHES[0], PANELS_INCHES[1] * lines), colours)
    grid = figure.add_gridspec(lines, 2)
    for number, panel in enumerate(panels):
        alone = number % 2 == 0 and number == len(panels) - 1
        _fill(figure.add_subplot(grid[number // 2, slice(0, 2) if alone else number % 2]), colours, panel)
    return _png(figure)


def _panels(metrics: Sequence[Event], colours: Colours) -> list[Panel]:
    steps = [event for event in metrics if isinstance(event, StepDone)]
    pairs = [event for event in metrics if isinstance(event, PairsEvaluated)]

    def trained(name: str, colour: str, key: str, scale: float = 1.0) -> Curve:
        return _finite(name, colour, [(e.step, scale * e.metrics[key]) for e in steps if key in e.metrics])

    def measured(name: str, colour: str, found: Sequence[float | None], scale: float = 1.0) -> Curve:
        points = [(e.step, scale * value) for e, value in zip(pairs, found, strict=True) if value is not None]
        return _finite(name, colour, points)

    chosen, rejected = colours.right, colours.shuffled
    won = (
        measured(RIGHT, colours.right, [event.won for event in pairs], 100.0),
        measured(SHUFFLED, colours.shuffled, [event.won_swapped for event in pairs], 100.0),
    )
    rewards = (trained("chosen", chosen, "rewards/chosen"), trained("rejected", rejected, "rewards/rejected"))
    answers = (trained("chosen", chosen, "logps/chosen"), trained("rejected", rejected, "logps/rejected"))
    # The reference is the start, but stands beside it only from the first step on.
    away = [0.0 if event.step == 0 and any(e.kl is not None for e in pairs) else event.kl for event in pairs]
    kl = measured("held-out", colours.none, away)
    loss = _loss([event for event in steps if _on_pairs(event)], colours)
    drawn = (
        ("loss over training pairs", "loss", (loss,), ()),
        ("pairs won", "per cent", (trained("training reward", colours.train, "rewards/accuracies", 100.0),), won),
        ("reward of training answers", "reward", rewards, ()),
        ("log-probability of training answers", "nats per answer", answers, ()),
        ("distance from the reference", "KL, nats per token", (), (kl,)),
    )
    return [Panel(title, unit, _drawn(steps), _drawn(held_out)) for title, unit, steps, held_out in drawn]


def _on_pairs(event: StepDone) -> bool:
    return "rewards/chosen" in event.metrics


def _loss(steps: Sequence[StepDone], colours: Colours) -> Curve:
    return _finite(TRAINING, colours.train, [(event.step, event.loss) for event in steps])


def _held_out(metrics: Sequence[Event], colours: Colours) -> tuple[Curve, ...]:
    found = [event for event in metrics if isinstance(event, Evaluated)]
    kinds = {"right": (RIGHT, colours.right), "shuffled": (SHUFFLED, colours.shuffled), "none": (NONE, colours.none)}
    return _drawn(
        [
            _finite(name, colour, [(event.step, event.losses[key]) for event in found if key in event.losses])
            for key, (name, colour) in kinds.items()
        ]
    )


def _finite(name: str, colour: str, points: Sequence[tuple[int, float]]) -> Curve:
    kept = [point for point in points if math.isfinite(point[1])]
    return Curve(name, colour, tuple(step for step, _ in kept), tuple(value for _, value in kept))


def _drawn(curves: Sequence[Curve]) -> tuple[Curve, ...]:
    return tuple(curve for curve in curves if curve.steps)


def _figure(inches: tuple[float, float], colours: Colours) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=inches, dpi=DOTS_PER_INCH, facecolor=colours.page, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", facecolor=figure.get_facecolor())
    return target.getvalue()


def _fill(axes: Axes, colours: Colours, panel: Panel) -> None:
    """Draw a panel: every training step thin and the smoothed curve thick, held-out rows as points on a line."""
    _dress(axes, colours, panel)
    smooth = [_smoothed(curve) for curve in panel.steps]
    for curve, line in zip(panel.steps, smooth, strict=True):
        axes.plot(curve.steps, curve.values, color=curve.colour, linewidth=0.8, alpha=0.45)
        axes.plot(line.steps, line.values, color=curve.colour, linewidth=2.0)
    for curve in panel.held_out:
        axes.plot(curve.steps, curve.values, color=curve.colour, linewidth=1.8, marker="o", markersize=5)
    # The area between the right and a shuffled picture is what the picture is worth.
    by_name = {curve.name: curve for curve in panel.held_out}
    right, shuffled = by_name.get(RIGHT), by_name.get(SHUFFLED)
    if right is not None and shuffled is not None and right.steps == shuffled.steps:
        axes.fill_between(right.steps, right.values, shuffled.values, color=right.colour, alpha=0.10, linewidth=0)
    _name_curves(axes, colours, (*smooth, *panel.held_out))


def _dress(axes: Axes, colours: Colours, panel: Panel) -> None:
    axes.set_facecolor(colours.page)
    axes.set_title(panel.title, color=colours.text, fontsize=10.5, loc="left")
    axes.set_xlabel("optimiser step", color=colours.text)
    axes.set_ylabel(panel.unit, color=colours.text)
    axes.grid(axis="y", color=colours.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=colours.text, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.015)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colours.grid)


def _mark_lost(axes: Axes, colours: Colours, steps: Sequence[int]) -> None:
    for step in steps:
        axes.axvline(step, color=colours.shuffled, linewidth=1.0, linestyle=":")
    if steps:
        top, where = axes.get_xaxis_transform(), (steps[0], 1.0)
        axes.annotate("loss not finite", where, (4, -4), top, "offset points", va="top", color=colours.shuffled)


def _smoothed(curve: Curve) -> Curve:
    """A mean over as many points after as before, so that the line does not trail a steep fall."""
    losses, reach = curve.values, max(1, round(SMOOTHING_SHARE * len(curve.values)))
    means = []
    for at in range(len(losses)):
        window = losses[at - min(reach, at) : at + min(reach, at) + 1]
        means.append(sum(window) / len(window))
    return replace(curve, values=tuple(means))


def _name_curves(axes: Axes, colours: Colours, curves: Sequence[Curve]) -> None:
    """Write each curve's name and last value at its right end, which spares the reader a legend."""
    low, high = axes.get_ylim()
    gap = LABEL_GAP_INCHES * DOTS_PER_INCH / axes.get_window_extent().height * (high - low)
    ends = sorted(curves, key=lambda curve: curve.values[-1])
    for curve, height in zip(ends, _spread([curve.values[-1] for curve in ends], gap), strict=True):
        axes.annotate(
            f"{curve.name} {curve.values[-1]:.3g}".replace(" -", " −"),
            xy=(1.0, height),
            xycoords=axes.get_yaxis_transform(),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=curve.colour if curve.name != TRAINING else colours.text,
            annotation_clip=False,
        )


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights pushed apart to at least ``gap``, around their common middle where they collide."""
    groups: list[list[float]] = []

    def edge(group: Sequence[float], side: int) -> float:
        return sum(group) / len(group) + side * gap * (len(group) - 1) / 2

    for height in heights:
        groups.append([height])
        while len(groups) > 1 and edge(groups[-1], -1) - edge(groups[-2], 1) < gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [edge(group, -1) + index * gap for group in groups for index in range(len(group))]
