"""Events are plain, frozen data that go into metrics.jsonl as they are."""

from __future__ import annotations

import dataclasses
import json

import pytest

from qlmm.core import events


def test_events_are_frozen_and_json() -> None:
    event = events.StepDone(1, 10, 2.0, {"connector": 1e-4}, {"connector": 0.5}, 100.0, 1, 9.0, {})
    assert json.loads(json.dumps(dataclasses.asdict(event)))["rates"] == {"connector": 1e-4}
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.step = 2  # type: ignore[misc]
