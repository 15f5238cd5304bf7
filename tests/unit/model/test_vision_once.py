"""A frozen tower is run once for pictures that are shown several times, and says the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from qlmm.model.parts import Parts
from qlmm.model.vision_once import VisionOnce


class Tower(nn.Module):
    """Counts its passes; rows are made apart, or every row depends on the first."""

    def __init__(self, *, mixes: bool = False) -> None:
        super().__init__()
        self.passes, self.seen, self.mixes = 0, 0, mixes
        self.weight = nn.Parameter(torch.randn(3, 5))

    def forward(self, pixel_values: torch.Tensor, output_hidden_states: bool = False) -> BaseModelOutput:
        self.passes, self.seen = self.passes + 1, self.seen + len(pixel_values)
        made = pixel_values @ self.weight
        made = made - made.mean(0) * len(made) if self.mixes else made
        return BaseModelOutput(last_hidden_state=made, hidden_states=(pixel_values, made))


def pictures(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3)


def test_the_same_pictures_are_seen_once() -> None:
    tower = Tower()
    once, shown = VisionOnce(tower), pictures(3)
    first, again = tower(shown), tower(shown.clone())
    assert tower.passes == once.passes == 1
    assert torch.equal(first.last_hidden_state, again.last_hidden_state)
    assert type(again) is BaseModelOutput
    assert isinstance(again.hidden_states, tuple)


def test_other_pictures_or_settings_are_seen_anew() -> None:
    tower = Tower()
    VisionOnce(tower)
    shown = pictures(3)
    for given, settings in ((shown, {}), (shown + 1, {}), (shown + 1, {"output_hidden_states": True}), (shown, {})):
        assert torch.equal(tower(given, **settings).last_hidden_state, given @ tower.weight)
    assert tower.passes == 4


def test_of_two_equal_halves_one_is_seen() -> None:
    tower = Tower()
    VisionOnce(tower)
    tower(pictures(2).repeat(2, 1))  # the first batch of the kind is run both ways
    tower.seen = 0
    shown = pictures(2).repeat(2, 1)
    assert torch.allclose(tower(shown).last_hidden_state, shown @ tower.weight)
    assert tower.seen == 2


def test_a_tower_whose_rows_depend_on_each_other_sees_both_halves() -> None:
    tower = Tower(mixes=True)
    expected = Tower(mixes=True)
    expected.load_state_dict(tower.state_dict())
    VisionOnce(tower)
    for _ in range(3):
        shown = pictures(2).repeat(2, 1)
        assert torch.allclose(tower(shown).last_hidden_state, expected(shown).last_hidden_state)


def test_writing_into_what_it_returns_does_no_harm() -> None:
    tower = Tower()
    VisionOnce(tower)
    shown = pictures(3)
    tower(shown).last_hidden_state = None
    assert tower(shown).last_hidden_state is not None


def test_it_leaves_no_trace() -> None:
    tower = Tower()
    once = VisionOnce(tower)
    once.end()
    tower(pictures())
    tower(pictures())
    assert tower.passes == 2


@pytest.mark.parametrize(
    "change",
    [
        {"lora": ("vision.layer",)},
        {"whole": ("vision",)},
        {"carried": ("vision",)},
        {"parts": Parts(("vision",), ("vision.merger", "connector"), ("language",), ())},
        {"parts": Parts(("vision.a", "vision.b"), ("connector",), ("language",), ())},
        {"parts": Parts(("vision",), ("connector",), ("language",), (), discrete=True)},
    ],
)
def test_a_tower_that_changes_is_left_alone(change: dict[str, Any]) -> None:
    parts = Parts(("vision",), ("connector",), ("language",), ())
    placement = SimpleNamespace(**{"parts": parts, "lora": (), "whole": ("connector",), "carried": ()} | change)
    base: Any = nn.ModuleDict({"vision": Tower(), "connector": nn.Linear(2, 2), "language": nn.Linear(2, 2)})
    assert VisionOnce.of(base, placement) is None  # type: ignore[arg-type]  # what it reads of a placement
    settled = SimpleNamespace(parts=parts, lora=(), whole=("connector",), carried=())
    assert VisionOnce.of(base, settled) is not None  # type: ignore[arg-type]  # as above
