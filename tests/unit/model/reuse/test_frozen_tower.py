"""A frozen tower runs without gradients and once for pictures that come back, and says the same."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from qlmm.model.parts.split import Parts
from qlmm.model.reuse.feature_store import FeatureStore
from qlmm.model.reuse.frozen_tower import FrozenTower


class Tower(nn.Module):
    """Counts its passes; rows are made apart, or every row depends on the first."""

    def __init__(self, *, mixes: bool = False) -> None:
        super().__init__()
        self.passes, self.mixes = 0, mixes
        self.weight = nn.Parameter(torch.randn(3, 5))

    def forward(self, pixel_values: torch.Tensor, output_hidden_states: bool = False) -> BaseModelOutput:
        self.passes += 1
        made = pixel_values @ self.weight
        made = made - made.mean(0) * len(made) if self.mixes else made
        return BaseModelOutput(last_hidden_state=made, hidden_states=(pixel_values, made))


class Model(nn.Module):
    """Calls its tower once a pass."""

    def __init__(self, tower: Tower | None = None) -> None:
        super().__init__()
        self.vision, self.connector, self.language = tower or Tower(), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, pixel_values: torch.Tensor, **settings: bool) -> BaseModelOutput:
        made: BaseModelOutput = self.vision(pixel_values, **settings)
        return made

    def get_base_model(self) -> Model:
        return self


class Shown:
    """A model whose pictures are rows of one tensor, named by their numbers."""

    def __init__(self, tower: Tower | None = None, store: FeatureStore | None = None) -> None:
        self.model = Model(tower)
        self.tower = self.model.vision
        self.frozen = FrozenTower(self.model, self.tower, store or FeatureStore())
        self.pictures = torch.randn(6, 3)

    def show(self, numbers: Sequence[int], *, named: bool = True, **settings: bool) -> torch.Tensor:
        with self.frozen.showing([str(number) for number in numbers] if named else None):
            made: torch.Tensor = self.model(self.pictures[list(numbers)], **settings).last_hidden_state
        return made

    def right(self, numbers: Sequence[int]) -> torch.Tensor:
        return self.pictures[list(numbers)] @ self.tower.weight.detach()


def test_a_picture_passes_once_whatever_stands_beside_it() -> None:
    shown = Shown()
    shown.show([4, 5])  # on the first batch it is tried whether pictures may be shown one by one
    before = shown.frozen.seen
    for order in ([0, 1], [1, 0, 2, 2], [3, 2, 1, 0], [0, 0, 3]):
        assert torch.allclose(shown.show(order), shown.right(order))
    assert shown.frozen.seen - before == 4


def test_features_have_the_same_bits_in_every_batch() -> None:
    made, pictures = [], torch.randn(6, 3)
    for order in ([0, 1, 2, 3, 4, 5], [5, 0]):
        shown = Shown()
        shown.tower.weight.data, shown.pictures = torch.ones(3, 5) / 3, pictures
        shown.show([3, 2])
        made.append(shown.show(order)[order.index(5)])
    assert torch.equal(*made)


def test_no_gradient_passes_the_tower_with_or_without_a_store() -> None:
    for store in (None, FeatureStore()):
        model = Model()
        FrozenTower(model, model.vision, store)
        asked = torch.randn(2, 3, requires_grad=True)
        assert not model(asked).last_hidden_state.requires_grad


def test_pictures_without_names_are_shown_each_time() -> None:
    shown = Shown()
    for _ in range(3):
        assert torch.equal(shown.show([0, 1], named=False), shown.right([0, 1]))
    assert shown.frozen.seen == 3


def test_it_returns_what_the_tower_returns() -> None:
    shown = Shown()
    for _ in range(2):
        with shown.frozen.showing(["0", "1", "2"]):
            made = shown.model(shown.pictures[:3], output_hidden_states=True)
        assert type(made) is BaseModelOutput
        assert isinstance(made.hidden_states, tuple)
        assert torch.equal(made.hidden_states[0], shown.pictures[:3])
        made.last_hidden_state = None  # writing into it does no harm


def test_other_settings_or_sizes_of_a_picture_are_seen_anew() -> None:
    shown = Shown()
    shown.show([4, 5])
    before = shown.frozen.seen
    for settings in ({}, {"output_hidden_states": True}, {}, {"output_hidden_states": True}):
        assert torch.equal(shown.show([0], **settings), shown.right([0]))
    assert shown.frozen.seen - before == 2


def test_a_second_look_of_the_same_pass_is_another_picture() -> None:
    class Twice(Model):
        def forward(self, pixel_values: torch.Tensor, **settings: bool) -> BaseModelOutput:
            first, second = super().forward(pixel_values), super().forward(pixel_values + 1)
            return BaseModelOutput(last_hidden_state=second.last_hidden_state - first.last_hidden_state)

    shown = Shown()
    shown.model.__class__ = Twice
    for _ in range(2):
        moved = shown.tower.weight.detach().sum(0).expand(2, -1)
        assert torch.allclose(shown.show([0, 1]), moved, atol=1e-5)


def test_a_tower_whose_rows_depend_on_each_other_is_shown_whole_batches() -> None:
    shown, expected = Shown(Tower(mixes=True)), Tower(mixes=True)
    expected.load_state_dict(shown.tower.state_dict())
    for _ in range(3):
        assert torch.allclose(shown.show([0, 1, 2, 3]), expected(shown.pictures[:4]).last_hidden_state)
    assert shown.frozen.seen == 1 + 4 + 1


def test_tiles_of_a_picture_are_known_by_their_pixels() -> None:
    shown = Shown()
    shown.show([4, 5])
    before = shown.frozen.seen
    for order in ([0, 1, 2], [2, 1]):
        with shown.frozen.showing(["one picture"]):
            assert torch.equal(shown.model(shown.pictures[order]).last_hidden_state, shown.right(order))
    assert shown.frozen.seen - before == 3


def test_one_picture_alone_does_not_tell() -> None:
    class Flat(Tower):
        def forward(self, pixel_values: torch.Tensor, output_hidden_states: bool = False) -> BaseModelOutput:
            made = super().forward(pixel_values)
            made.last_hidden_state = made.last_hidden_state[None]
            return made

    shown = Shown(Flat())
    for order in ([0], [1], [2, 3], [3, 4, 5]):
        assert torch.allclose(shown.show(order), shown.right(order)[None])


def test_it_leaves_no_trace() -> None:
    shown = Shown()
    shown.frozen.end()
    for _ in range(2):
        assert shown.show([0, 1]).requires_grad
    assert shown.tower.passes == 2
    assert not shown.model._forward_pre_hooks


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
    placement: Any = SimpleNamespace(**{"parts": parts, "lora": (), "whole": ("connector",), "carried": ()} | change)
    model: Any = Model()
    assert FrozenTower.of(model, placement, None) is None
    settled: Any = SimpleNamespace(parts=parts, lora=(), whole=("connector",), carried=())
    assert FrozenTower.of(model, settled, None) is not None
