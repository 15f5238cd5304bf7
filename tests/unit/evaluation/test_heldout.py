"""Held-out losses: pictures are swapped by a rule, and the three figures are what a hand computation gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlavaForConditionalGeneration

from qlmm.data.encoding.encoder import IGNORED, Encoder
from qlmm.data.sample import ImageRef, Origin, Sample, Turn
from qlmm.evaluation.heldout import HeldOut, swap_pictures
from qlmm.model.numerics.precision import Precision
from qlmm.model.token_losses import token_losses
from tests.tiny import tiny_llava, tiny_processor
from tests.unit.evaluation.pictures import colour

FP32 = Precision("cpu", "fp32")
ANSWERS = ("it is red", "blue", "it is the green one in the back", "no")


def sample(number: int, pictures: Sequence[ImageRef]) -> Sample:
    turns = (Turn("user", (*pictures, "what is this ?")), Turn("assistant", (ANSWERS[number % len(ANSWERS)],)))
    return Sample(turns, Origin("rows.jsonl", number))


SAMPLES = tuple(sample(number, [colour(number)]) for number in range(4))
NAMES = st.lists(st.lists(st.sampled_from("abc"), max_size=3), max_size=8)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.make(tiny_processor(), max_length=500)


@pytest.fixture(scope="module")
def model(encoder: Encoder) -> LlavaForConditionalGeneration:
    return tiny_llava(encoder.processor)  # type: ignore[arg-type]  # the tiny processor it was made with


@settings(max_examples=200, deadline=None)
@given(NAMES)
def test_a_row_gets_as_many_pictures_of_another_row_or_is_left_out(rows: list[list[str]]) -> None:
    samples = [sample(number, [ImageRef(path=Path(name)) for name in names]) for number, names in enumerate(rows)]
    for own, other in zip(samples, swap_pictures(samples), strict=True):
        foreign = [one.images for one in samples if len(one.images) == len(own.images) and one.images != own.images]
        if not own.images or not foreign:
            assert other is None
            continue
        assert other is not None
        assert other.images in foreign
        assert other.origin == own.origin
        assert other.without_images() == own.without_images()


def test_pictures_come_from_the_next_row() -> None:
    swapped = swap_pictures(SAMPLES)
    assert [one.images if one else None for one in swapped] == [SAMPLES[(n + 1) % 4].images for n in range(4)]


@torch.no_grad()
def by_hand(model: nn.Module, encoder: Encoder, samples: Sequence[Sample]) -> float:
    """Loss per supervised token, one row at a time, from the logits of all positions."""
    total, tokens = 0.0, 0
    for one in samples:
        batch = encoder.batch([one])
        labels = batch.pop("labels")[0]
        likely = torch.log_softmax(model(**batch).logits[0].double(), dim=-1)
        for place in range(1, len(labels)):
            if labels[place] != IGNORED:
                total, tokens = total - float(likely[place - 1, labels[place]]), tokens + 1
    return total / tokens


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_three_losses_are_those_of_a_hand_computation(
    batch_size: int, model: LlavaForConditionalGeneration, encoder: Encoder
) -> None:
    measured = HeldOut(SAMPLES, encoder, FP32, batch_size).measure(model)
    assert measured is not None
    assert measured.rows == 4
    swapped = [one.with_images(SAMPLES[(number + 1) % 4].images) for number, one in enumerate(SAMPLES)]
    bare = [one.without_images() for one in SAMPLES]
    for found, rows in ((measured.right, SAMPLES), (measured.shuffled, swapped), (measured.none, bare)):
        assert found == pytest.approx(by_hand(model, encoder, rows), abs=1e-5)
    assert measured.gap == measured.shuffled - measured.right
    assert len({measured.right, measured.shuffled, measured.none}) == 3


def test_rows_without_pictures_are_in_none_of_the_losses(
    model: LlavaForConditionalGeneration, encoder: Encoder
) -> None:
    texts = [sample(number, []) for number in range(3)]
    mixed = HeldOut([texts[0], *SAMPLES[:2], texts[1], *SAMPLES[2:], texts[2]], encoder, FP32, 2)
    assert mixed.measure(model) == HeldOut(SAMPLES, encoder, FP32, 2).measure(model)


@pytest.mark.parametrize("rows", [(), (sample(1, []),), SAMPLES[:1], (SAMPLES[0], SAMPLES[0])])
def test_nothing_to_swap_is_nothing_to_measure(
    rows: tuple[Sample, ...], model: LlavaForConditionalGeneration, encoder: Encoder
) -> None:
    assert HeldOut(rows, encoder, FP32, 2).measure(model) is None


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_put_back(training: bool, model: LlavaForConditionalGeneration, encoder: Encoder) -> None:
    model.train(training)
    HeldOut(SAMPLES[:2], encoder, FP32, 2).measure(model)
    assert {module.training for module in model.modules()} == {training}
    model.eval()


def test_the_mode_is_put_back_after_a_failure(encoder: Encoder) -> None:
    class Failing(nn.Module):
        config = LlamaConfig()

        def forward(self, **_: object) -> None:
            assert not self.training
            raise RuntimeError("no memory")

    failing = Failing().train()
    with pytest.raises(RuntimeError, match="no memory"):
        HeldOut(SAMPLES[:2], encoder, FP32, 2).measure(failing)
    assert failing.training


def test_measuring_leaves_no_gradient_and_draws_no_random_number(
    model: LlavaForConditionalGeneration, encoder: Encoder
) -> None:
    model.train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    HeldOut(SAMPLES, encoder, FP32, 2).measure(model)
    assert torch.equal(torch.rand(3), expected)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()


def test_only_supervised_places_go_through_the_head(encoder: Encoder) -> None:
    """Full logits of a large model would not fit: the head is asked for the places of answers and no others."""
    seen: dict[str, torch.Tensor] = {}

    class Asked(nn.Module):
        config = LlamaConfig()

        def forward(self, *, logits_to_keep: torch.Tensor, input_ids: torch.Tensor, **_: object) -> object:
            seen["places"] = logits_to_keep
            shape = (len(input_ids), len(logits_to_keep), 400)
            return type("Output", (), {"logits": torch.zeros(shape)})

    batch = encoder.batch(SAMPLES[:2])
    labels = batch.pop("labels")
    losses = token_losses(Asked(), batch, labels)
    supervised = labels[:, 1:].ne(IGNORED)
    assert losses.tolist() == pytest.approx([float(torch.log(torch.tensor(400.0)))] * int(supervised.sum()), rel=1e-5)
    assert seen["places"].tolist() == supervised.any(dim=0).nonzero().flatten().tolist()
    assert len(seen["places"]) < batch["input_ids"].shape[1] / 2


def test_where_held_out_rows_show_one_picture_a_wrong_one_comes_from_other_rows() -> None:
    rows = [sample(number, [colour(0)]) for number in range(2)]
    assert swap_pictures(rows) == [None, None]
    swapped = swap_pictures(rows, [sample(9, [colour(0)]), sample(9, []), sample(9, [colour(3)])])
    assert [row.images if row else None for row in swapped] == [(colour(3),), (colour(3),)]
    text = sample(0, [])
    assert swap_pictures([text], [sample(9, [colour(3)])]) == [None]
