"""The loss curve of a run: training loss thin and smoothed, held-out loss by the picture that was shown.

The distance between the right and a shuffled picture is what the model takes from its eyes; the figure is about that.

Usage: ``files.atomic_write(folder / "loss.png", loss_png(read_metrics(folder / "metrics.jsonl")))``
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from qlmm.core.events import Evaluated, Event, StepDone

__all__ = ["loss_png"]

SIZE_INCHES = (8.4, 4.2)
DOTS_PER_INCH = 160
SMOOTHING_SHARE = 0.04  # of the steps; wide enough to calm a batch of one, narrow enough to keep a bump
TRAINING, RIGHT, SHUFFLED = "training", "right picture", "shuffled pictures"
LABEL_GAP = 0.065  # of the axis' height: the least distance between two labels


@dataclass(frozen=True, slots=True)
class Colours:
    """A page's colours and one per curve, told apart by colour-blind readers too (Okabe and Ito)."""

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
    """Points to draw, steps against nats per token, all of them finite."""

    name: str
    colour: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]


def loss_png(metrics: Sequence[Event], *, dark: bool = False) -> bytes:
    """The figure as a PNG of 1,344 x 672 pixels; a run without any step gives empty axes that say so.

    Args:
        metrics: a run's events, as :func:`qlmm.training.logbook.read_metrics` gives them.
        dark: draw for a dark page.
    """
    colours = DARK if dark else LIGHT
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, facecolor=colours.page, layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _dress(axes, colours)
    _draw(axes, colours, metrics)
    target = io.BytesIO()
    figure.savefig(target, format="png", facecolor=colours.page)
    return target.getvalue()


def _draw(axes: Axes, colours: Colours, metrics: Sequence[Event]) -> None:
    steps = [event for event in metrics if isinstance(event, StepDone)]
    held_out = _held_out(metrics, colours)
    train = _finite(TRAINING, colours.train, [(event.step, event.loss) for event in steps])
    if not train.steps and not held_out:
        axes.text(0.5, 0.5, "no step was taken", transform=axes.transAxes, ha="center", color=colours.text)
        return
    smooth = _smoothed(train)
    axes.plot(train.steps, train.losses, color=colours.train, linewidth=0.8, alpha=0.45)
    axes.plot(smooth.steps, smooth.losses, color=colours.train, linewidth=2.0)
    for curve in held_out:
        axes.plot(curve.steps, curve.losses, color=curve.colour, linewidth=1.8, marker="o", markersize=5)
    _shade(axes, held_out)
    _mark_lost(axes, colours, [event.step for event in steps if not math.isfinite(event.loss)])
    _name_curves(axes, colours, [curve for curve in (smooth, *held_out) if curve.steps])


def _shade(axes: Axes, held_out: Sequence[Curve]) -> None:
    """Fill what lies between the right and a shuffled picture: what seeing is worth."""
    right, shuffled = (next((curve for curve in held_out if curve.name == name), None) for name in (RIGHT, SHUFFLED))
    if right is not None and shuffled is not None and right.steps == shuffled.steps:
        axes.fill_between(right.steps, right.losses, shuffled.losses, color=right.colour, alpha=0.10, linewidth=0)


def _mark_lost(axes: Axes, colours: Colours, steps: Sequence[int]) -> None:
    for step in steps:
        axes.axvline(step, color=colours.shuffled, linewidth=1.0, linestyle=":")
    if steps:
        axes.annotate(
            "loss not finite",
            xy=(steps[0], 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(4, -4),
            textcoords="offset points",
            va="top",
            color=colours.shuffled,
        )


def _dress(axes: Axes, colours: Colours) -> None:
    axes.set_facecolor(colours.page)
    axes.set_xlabel("optimiser step", color=colours.text)
    axes.set_ylabel("loss, nats per token", color=colours.text)
    axes.grid(axis="y", color=colours.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=colours.text, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.015)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colours.grid)


def _held_out(metrics: Sequence[Event], colours: Colours) -> list[Curve]:
    evaluations = [event for event in metrics if isinstance(event, Evaluated)]
    kinds = (
        ("right", RIGHT, colours.right),
        ("shuffled", SHUFFLED, colours.shuffled),
        ("none", "no picture", colours.none),
    )
    curves = [
        _finite(name, colour, [(event.step, event.losses[key]) for event in evaluations if key in event.losses])
        for key, name, colour in kinds
    ]
    return [curve for curve in curves if curve.steps]


def _finite(name: str, colour: str, points: Sequence[tuple[int, float]]) -> Curve:
    kept = [point for point in points if math.isfinite(point[1])]
    return Curve(name, colour, tuple(step for step, _ in kept), tuple(loss for _, loss in kept))


def _smoothed(curve: Curve) -> Curve:
    """A mean over as many points after as before, so that the line does not trail a steep fall."""
    losses, reach = curve.losses, max(1, round(SMOOTHING_SHARE * len(curve.losses)))
    means = []
    for at in range(len(losses)):
        window = losses[at - min(reach, at) : at + min(reach, at) + 1]
        means.append(sum(window) / len(window))
    return Curve(curve.name, curve.colour, curve.steps, tuple(means))


def _name_curves(axes: Axes, colours: Colours, curves: Sequence[Curve]) -> None:
    """Each curve's name and last value at its right end, instead of a legend to look things up in."""
    low, high = axes.get_ylim()
    gap = LABEL_GAP * (high - low)
    ends = sorted(curves, key=lambda curve: curve.losses[-1])
    heights = _spread([curve.losses[-1] for curve in ends], gap)
    for curve, height in zip(ends, heights, strict=True):
        axes.annotate(
            f"{curve.name} {curve.losses[-1]:.2f}",
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
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _bottom(groups[-1], gap) - _top(groups[-2], gap) < gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_bottom(group, gap) + index * gap for group in groups for index in range(len(group))]


def _bottom(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _top(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) + gap * (len(group) - 1) / 2
