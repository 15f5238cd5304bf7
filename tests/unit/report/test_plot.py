"""The loss curve is a readable PNG for any run, also for one that diverged or never began."""

from __future__ import annotations

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qlmm.core.events import Evaluated, Event, PairsEvaluated, StepDone, Warned
from qlmm.report.plot import LIGHT, Curve, _panels, _smoothed, _spread, loss_png, preferences_png
from tests.run_facts import metrics, pair_metrics, pair_step, step

DIVERGED: list[Event] = [*metrics(20), step(21, float("nan")), step(22, float("inf"))]
ONLY_EVALUATED: list[Event] = [Evaluated(0, {"right": 3.0}), Warned("nothing else")]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("events", [[], metrics(), DIVERGED, ONLY_EVALUATED, [step(1, float("nan"))], [step(1)]])
def test_any_run_has_a_picture(events: list[Event], dark: bool) -> None:
    picture = Image.open(io.BytesIO(loss_png(events, dark=dark)))
    assert picture.size == (1344, 672)
    corner = picture.convert("RGB").getpixel((1, 1))
    assert corner == ((22, 24, 29) if dark else (255, 255, 255))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    ("events", "lines"),
    [
        (pair_metrics(), 3),
        (pair_metrics(kl=False), 2),
        (pair_metrics(pictures=False), 3),
        ([PairsEvaluated(0, 0.5, 0.0, None, None, None)], 1),
        ([pair_step(1)], 2),
        ([step(1, metrics={"rewards/accuracies": float("nan"), "logps/chosen": 1.0})], 1),
    ],
)
def test_a_preference_run_has_a_panel_for_each_thing_that_was_measured(
    events: list[Event], lines: int, dark: bool
) -> None:
    drawn = preferences_png(events, dark=dark)
    assert drawn is not None
    picture = Image.open(io.BytesIO(drawn))
    assert picture.size == (1680, 496 * lines)
    assert picture.convert("RGB").getpixel((1, 1)) == ((22, 24, 29) if dark else (255, 255, 255))


@pytest.mark.parametrize("events", [[], metrics(), [step(1, metrics={"entropy": 1.0})]])
def test_a_run_without_preferences_has_no_such_picture(events: list[Event]) -> None:
    assert preferences_png(events) is None


def test_a_loss_over_pairs_is_not_drawn_beside_that_of_held_out_answers() -> None:
    held_out: list[Event] = [Evaluated(0, {"right": 5.0}), Evaluated(60, {"right": 4.0})]
    without = [event for event in pair_metrics() if not isinstance(event, StepDone)]
    assert loss_png([*held_out, *pair_metrics()]) == loss_png([*held_out, *without])
    assert loss_png(pair_metrics()) != loss_png([])


def test_the_distance_from_the_reference_begins_at_the_start() -> None:
    *_, distance = _panels(pair_metrics(), LIGHT)
    (kl,) = distance.held_out
    assert (kl.steps[:2], kl.values[0]) == ((0, 20), 0.0)
    *_, unknown = _panels(pair_metrics(kl=False), LIGHT)
    assert unknown.held_out == ()


def test_smoothing_follows_a_straight_fall_without_lag() -> None:
    line = tuple(float(100 - at) for at in range(100))
    smooth = _smoothed(Curve("training", "black", tuple(range(100)), line))
    assert smooth.values[0] == line[0]
    assert smooth.values[:90] == pytest.approx(line[:90])


@given(st.lists(st.floats(-5, 5), max_size=6).map(sorted))
def test_labels_keep_their_order_and_their_distance(heights: list[float]) -> None:
    spread = _spread(heights, 0.5)
    assert len(spread) == len(heights)
    assert all(above - below >= 0.5 - 1e-9 for below, above in itertools.pairwise(spread))
