"""The loss curve is a readable PNG for any run, also for one that diverged or never began."""

from __future__ import annotations

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qlmm.core.events import Evaluated, Event, Warned
from qlmm.evaluation.plot import Curve, _smoothed, _spread, loss_png
from tests.run_facts import metrics, step

DIVERGED: list[Event] = [*metrics(20), step(21, float("nan")), step(22, float("inf"))]
ONLY_EVALUATED: list[Event] = [Evaluated(0, {"right": 3.0}), Warned("nothing else")]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("events", [[], metrics(), DIVERGED, ONLY_EVALUATED, [step(1, float("nan"))], [step(1)]])
def test_any_run_has_a_picture(events: list[Event], dark: bool) -> None:
    picture = Image.open(io.BytesIO(loss_png(events, dark=dark)))
    assert picture.size == (1344, 672)
    corner = picture.convert("RGB").getpixel((1, 1))
    assert corner == ((22, 24, 29) if dark else (255, 255, 255))


def test_smoothing_follows_a_straight_fall_without_lag() -> None:
    line = tuple(float(100 - at) for at in range(100))
    smooth = _smoothed(Curve("training", "black", tuple(range(100)), line))
    assert smooth.losses[0] == line[0]
    assert smooth.losses[:90] == pytest.approx(line[:90])


@given(st.lists(st.floats(-5, 5), max_size=6).map(sorted))
def test_labels_keep_their_order_and_their_distance(heights: list[float]) -> None:
    spread = _spread(heights, 0.5)
    assert len(spread) == len(heights)
    assert all(above - below >= 0.5 - 1e-9 for below, above in itertools.pairwise(spread))
