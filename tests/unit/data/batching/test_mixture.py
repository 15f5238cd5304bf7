"""The order of an epoch: complete, in proportion everywhere, seeded, and independent of batch size."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from qlmm.core.errors import DataError
from qlmm.data.batching.mixture import Mixture, MixtureSampler, interleaved
from qlmm.data.sample import ImageRef, Origin, Sample, Turn


def sample(picture: bool) -> Sample:
    asked = (ImageRef(data=b"x"), "Q") if picture else ("Q",)
    return Sample((Turn("user", asked), Turn("assistant", ("A",))), Origin("x", 1))


TEXT, PICTURE = sample(False), sample(True)


def mixture(
    text: list[int], pictures: list[int], ratio: float | None = None, weights: list[float] | None = None
) -> Mixture:
    """Sources with so many text-only and picture rows each."""
    samples, source = [], []
    for place, (plain, shown) in enumerate(zip(text, pictures, strict=True)):
        samples += [TEXT] * plain + [PICTURE] * shown
        source += [place] * (plain + shown)
    return Mixture.of(samples, source, weights or [1.0] * len(text), text_ratio=ratio)


COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(any)


@settings(max_examples=150, deadline=None)
@given(counts=COUNTS)
def test_every_prefix_keeps_every_share_within_one_row(counts: list[int]) -> None:
    order, total, seen = interleaved(counts), sum(counts), Counter[int]()
    for length, chosen in enumerate(order, 1):
        seen[chosen] += 1
        assert all(abs(seen[place] - length * count / total) < 1 for place, count in enumerate(counts))
    assert [seen[place] for place in range(len(counts))] == counts


@settings(max_examples=60, deadline=None)
@given(data=st.data(), ratio=st.sampled_from([0.0, 0.1, 0.5, 0.8]), seed=st.integers(0, 3))
def test_a_text_share_holds_in_every_prefix_and_picture_rows_are_complete(
    data: st.DataObject, ratio: float, seed: int
) -> None:
    text = data.draw(st.lists(st.integers(1, 20), min_size=2, max_size=2))
    pictures = data.draw(st.lists(st.integers(1, 20), min_size=2, max_size=2))
    mixed = mixture(text, pictures, ratio)
    text_rows = {row for stratum in mixed.strata if stratum.text_only for row in stratum.rows}
    order = list(MixtureSampler(mixed, seed=seed))
    assert len(order) == len(mixed)
    shown = [row for row in order if row not in text_rows]
    assert len(shown) == len(set(shown)) == sum(pictures)
    found = sum(row in text_rows for row in order)
    assert abs(found - sum(pictures) * ratio / (1 - ratio)) <= 0.5
    for length in range(1, len(order) + 1):
        texts = sum(row in text_rows for row in order[:length])
        assert abs(texts - length * found / len(order)) < 1


def test_without_a_share_an_epoch_has_every_row_once() -> None:
    mixed = mixture([5, 0], [3, 9])
    assert sorted(MixtureSampler(mixed)) == list(range(17))
    assert len(MixtureSampler(mixed)) == 17


def test_weights_are_times_per_epoch() -> None:
    mixed = mixture([0, 0], [10, 10], weights=[2.0, 0.5])
    seen = Counter(MixtureSampler(mixed))
    assert all(seen[row] == 2 for row in range(10))
    assert sum(seen[row] for row in range(10, 20)) == 5


@given(weight=st.sampled_from([0.3, 0.5, 1.0, 1.7, 2.0]), seed=st.integers(0, 5))
def test_no_row_is_seen_again_before_all_of_its_kind_were(weight: float, seed: int) -> None:
    sampler = MixtureSampler(mixture([0], [7], weights=[weight]), seed=seed)
    seen: list[int] = []
    for epoch in range(12):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert len(order) == round(7 * weight)
        counts = Counter(seen + order)
        assert max(counts.values()) - min(counts[row] for row in range(7)) <= 1
        seen += order


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    mixed = mixture([20], [20], 0.5)
    first, same, other = MixtureSampler(mixed, seed=1), MixtureSampler(mixed, seed=1), MixtureSampler(mixed, seed=2)
    assert list(first) == list(first) == list(same)
    assert list(first) != list(other)
    same.set_epoch(1)
    assert list(first) != list(same)
    first.set_epoch(1)
    assert list(first) == list(same)
    for size in (1, 3, 8):
        assert [row for batch in BatchSampler(first, size, drop_last=False) for row in batch] == list(same)


def test_a_share_of_rows_that_do_not_exist_is_refused() -> None:
    with pytest.raises(DataError, match="no text-only rows"):
        mixture([0], [5], 0.5)
    with pytest.raises(DataError, match="no picture rows"):
        mixture([5], [0], 0.5)
    assert len(mixture([0], [5], 0.0)) == 5
