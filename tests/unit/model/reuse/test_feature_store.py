"""Features come back as they were put, up to a number of bytes; those not asked for longest go first."""

from __future__ import annotations

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from qlmm.model.reuse.feature_store import FeatureStore


def features(value: float) -> BaseModelOutput:
    made = torch.full((1, 4), value)
    return BaseModelOutput(last_hidden_state=made, hidden_states=(made, made + 1))


SIZE = 3 * 4 * 4


def test_features_come_back_in_the_class_they_came_in() -> None:
    store = FeatureStore()
    assert store.get("a") is None
    store.put("a", features(2.0))
    found = store.get("a")
    assert type(found) is BaseModelOutput
    assert torch.equal(found.hidden_states[1], torch.full((1, 4), 3.0))


def test_a_name_keeps_what_it_has() -> None:
    store = FeatureStore()
    store.put("a", features(1.0))
    store.put("a", features(2.0))
    assert float(store.get("a").last_hidden_state[0, 0]) == 1.0  # type: ignore[union-attr]  # it was put


@pytest.mark.parametrize(("asked", "gone"), [(None, "a"), ("a", "b")])
def test_what_was_asked_for_longest_ago_goes_first(asked: str | None, gone: str) -> None:
    store = FeatureStore(limit_bytes=2 * SIZE)
    store.put("a", features(1.0))
    store.put("b", features(2.0))
    if asked is not None:
        store.get(asked)
    store.put("c", features(3.0))
    assert {name for name in "abc" if store.get(name) is None} == {gone}
    assert len(store) == 2


def test_what_is_larger_than_the_store_is_not_kept_and_drives_nothing_out() -> None:
    store = FeatureStore(limit_bytes=SIZE)
    store.put("a", features(1.0))
    store.put("b", torch.zeros(SIZE))
    assert (store.get("a") is not None, store.get("b")) == (True, None)


def test_nothing_is_left_when_it_is_cleared() -> None:
    store = FeatureStore()
    store.put("a", features(1.0))
    store.clear()
    assert (len(store), store.get("a")) == (0, None)
