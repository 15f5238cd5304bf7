"""A frozen tower is run once for pictures that are shown several times, and says the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from qlmm.model.parts.split import Parts
from qlmm.model.reuse.feature_store import VisionOnce


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


def features(tower: Tower, shown: torch.Tensor, **settings: bool) -> torch.Tensor:
    made: torch.Tensor = tower(shown, **settings).last_hidden_state
    return made


def test_a_picture_is_seen_once_whatever_stands_beside_it() -> None:
    tower = Tower()
    once, shown = VisionOnce(tower), pictures(4)
    features(tower, pictures(2))  # on the first batch it is tried whether pictures may be shown one by one
    before = once.seen
    for order in ([0, 1], [1, 0, 2, 2], [3, 2, 1, 0], [0, 0, 3]):
        assert torch.allclose(features(tower, shown[order]), shown[order] @ tower.weight)
    assert once.seen - before == 4


def test_features_have_the_same_bits_in_every_batch() -> None:
    shown = torch.randn(6, 3)
    made = []
    for order in ([0, 1, 2, 3, 4, 5], [5, 0]):
        tower = Tower()
        tower.weight.data = torch.ones(3, 5) / 3
        VisionOnce(tower)
        features(tower, shown[[3, 2]])
        made.append(features(tower, shown[order])[order.index(5)])
    assert torch.equal(*made)


def test_it_returns_what_the_tower_returns() -> None:
    tower = Tower()
    VisionOnce(tower)
    shown = pictures(3)
    for _ in range(2):
        made = tower(shown, output_hidden_states=True)
        assert type(made) is BaseModelOutput
        assert isinstance(made.hidden_states, tuple)
        assert torch.equal(made.hidden_states[0], shown)
        made.last_hidden_state = None  # writing into it does no harm


def test_other_pictures_or_settings_are_seen_anew() -> None:
    tower = Tower()
    once = VisionOnce(tower)
    shown = pictures(1)
    features(tower, pictures(2))
    before = once.seen
    for given, settings in ((shown, {}), (shown + 1, {}), (shown + 1, {"output_hidden_states": True}), (shown, {})):
        assert torch.equal(features(tower, given, **settings), given @ tower.weight)
    assert once.seen - before == 3


def test_a_tower_whose_rows_depend_on_each_other_is_shown_whole_batches() -> None:
    tower = Tower(mixes=True)
    expected = Tower(mixes=True)
    expected.load_state_dict(tower.state_dict())
    once, shown = VisionOnce(tower), pictures(4)
    for _ in range(3):
        assert torch.allclose(features(tower, shown), expected(shown).last_hidden_state)
    assert once.seen == 1 + 4 + 1


def test_one_picture_alone_does_not_tell() -> None:
    class Flat(Tower):
        def forward(self, pixel_values: torch.Tensor, output_hidden_states: bool = False) -> BaseModelOutput:
            made = super().forward(pixel_values)
            made.last_hidden_state = made.last_hidden_state[None]
            return made

    tower = Flat()
    VisionOnce(tower)
    for shown in (pictures(1), pictures(1), pictures(2), pictures(3)):
        assert torch.allclose(features(tower, shown), (shown @ tower.weight)[None])


def test_no_more_is_kept_than_it_may() -> None:
    tower = Tower()
    once, shown = VisionOnce(tower, kept_bytes=2 * (3 + 5 + 5) * 4), pictures(3)
    features(tower, shown[:2])
    features(tower, shown[:1])
    before = once.seen
    for row in (0, 1, 2, 2, 1, 0):
        features(tower, shown[row : row + 1])
    assert once.seen - before == 2  # 2, and 0 again, which had made room for it


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
