"""Judged answers: one last answer is learned, verdicts travel along, and comparisons exchange answers in a batch."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from qlmm.core.errors import ModelError, RunError
from qlmm.data.batching.collators import FeedbackCollator, rows
from qlmm.data.encoding.encoder import Encoder
from qlmm.data.encoding.trace import traced
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.sample import Feedback, ImageRef, Origin, Preference, Sample, Turn
from tests.tiny import TOKENS_PER_IMAGE, tiny_processor


def picture(width: int = 40, height: int = 30, colour: str = "red") -> ImageRef:
    return ImageRoot(".").ref(Image.new("RGB", (width, height), colour))


def judged(*prompt: tuple[Any, ...], completion: str = "A red cat.", desirable: bool = True, line: int = 1) -> Feedback:
    """A row whose prompt's turns are user and assistant by turns, each told by its parts."""
    turns = tuple(Turn("assistant" if n % 2 else "user", tuple(parts)) for n, parts in enumerate(prompt))
    return Feedback(turns, completion, desirable, Origin("rows.jsonl", line))


@functools.lru_cache
def encoder(template: str = "chatml", **settings: Any) -> Encoder:
    return Encoder.make(tiny_processor(template), **settings)


NONE = judged(("Hi",), completion="Ho", desirable=False, line=2)
ONE = judged((picture(), "What is this?"))
TWO = judged((picture(9, 300, "blue"), "First."), ("Thin.",), ("Again?", picture(1, 1)), completion="Dot.", line=3)


class TestRow:
    def test_a_row_is_a_conversation_and_a_verdict(self) -> None:
        assert ONE.sample == Sample(ONE.turns, ONE.origin)
        assert ONE.turns == (*ONE.prompt, Turn("assistant", ("A red cat.",)))
        assert ONE.answered("No.").turns[-1].text == "No."
        assert ONE.content != replace(ONE, desirable=False).content
        assert ONE.content != replace(ONE, completion="B").content

    def test_pictures_are_swapped_and_left_out(self) -> None:
        other = picture(colour="blue")
        assert ONE.with_images((other,)).images == (other,)
        assert ONE.with_images((other,)).desirable is ONE.desirable
        assert ONE.without_images().images == ()
        with pytest.raises(ValueError, match="2 pictures for 1 places"):
            ONE.with_images((other, other))

    def test_the_oldest_exchange_goes_and_leaves_its_pictures(self) -> None:
        shorter = TWO.without_oldest()
        assert shorter == replace(TWO, prompt=(Turn("user", (TWO.images[0], "Again?", TWO.images[1])),))
        assert ONE.without_oldest() is None

    def test_a_pair_is_praise_and_blame(self) -> None:
        pair = Preference(ONE.prompt, "Yes.", "No.", ONE.origin)
        assert pair.judged() == (
            Feedback(ONE.prompt, "Yes.", True, ONE.origin),
            Feedback(ONE.prompt, "No.", False, ONE.origin),
        )


@pytest.mark.parametrize("template", ["chatml", "owl", "vicuna", "plain"])
def test_a_row_is_measured_as_it_is_encoded(template: str) -> None:
    batch = encoder(template).completions([one.sample for one in (NONE, ONE, TWO)])
    measured = encoder(template).measure([NONE, ONE, TWO])
    assert [one.total for one in measured] == batch["attention_mask"].sum(dim=1).tolist()
    assert [one.supervised for one in measured] == batch["completion_mask"].sum(dim=1).tolist()
    assert [one.visual for one in measured] == [0, TOKENS_PER_IMAGE, 2 * TOKENS_PER_IMAGE]


def test_only_the_last_answer_is_learned_and_traced() -> None:
    learned = [piece.text for piece in traced(encoder(), TWO) if piece.kind == "learned"]
    assert learned == ["Dot.<|im_end|>"]
    assert [piece.tokens for piece in traced(encoder(), TWO) if piece.kind == "picture"] == [TOKENS_PER_IMAGE] * 2


def test_rows_that_are_too_long_are_shortened_or_told() -> None:
    whole = encoder().measure([TWO])[0].total
    fitted = Encoder.make(tiny_processor(), max_length=whole - 1, overlong="shorten").fit([NONE, TWO])
    assert fitted.shortened == 1
    assert fitted.samples == (NONE, TWO.without_oldest())
    (dropped,) = Encoder.make(tiny_processor(), max_length=whole - 1).fit([NONE, TWO]).dropped
    assert dropped.origin.line == 3


def test_a_base_with_a_decoder_of_its_own_takes_none() -> None:
    with pytest.raises(ModelError, match="D044"):
        Encoder.make(tiny_processor(), decoder=True).measure([ONE])


class TestCollator:
    def test_each_prompt_stands_before_the_answer_of_the_row_before(self) -> None:
        collate, numbers = FeedbackCollator([NONE, ONE, TWO], encoder(), kl=True), rows(3)
        batch = collate([numbers[2], numbers[0], numbers[1]])
        own = encoder().completions([TWO.sample, NONE.sample, ONE.sample])
        other = encoder().completions([TWO.answered("A red cat."), NONE.answered("Dot."), ONE.answered("Ho")])
        assert set(batch) == {*own, "label", "KL_also", *(f"KL_{name}" for name in other if name != "pixel_values")}
        assert all(torch.equal(batch[name], own[name]) for name in own)
        assert all(torch.equal(batch[f"KL_{name}"], other[name]) for name in other if name != "pixel_values")
        assert batch["KL_also"] == {}
        assert batch["label"].dtype == torch.bool
        assert batch["label"].tolist() == [True, False, True]
        assert [origin.line for origin in collate.origins([2, 0, 1])] == [3, 2, 1]

    def test_a_loss_without_comparisons_gets_none(self) -> None:
        batch = FeedbackCollator([NONE, ONE], encoder(), kl=False)(rows(2))
        assert set(batch) == {"input_ids", "attention_mask", "completion_mask", "pixel_values", "label"}

    def test_comparisons_are_cut_at_the_length_that_rows_keep_to(self) -> None:
        long = judged(("Hi",), completion="word " * 30, line=4)
        asked = judged(("What " * 30,), completion="Ho", line=5)
        longest = max(one.total for one in encoder().measure([long, asked]))
        tight = Encoder.make(tiny_processor(), max_length=longest)
        assert tight.fit([long, asked]).dropped == ()
        batch = FeedbackCollator([long, asked], tight, kl=True)(rows(2))
        assert encoder().completions([asked.answered(long.completion)])["input_ids"].shape[1] > longest
        for name in ("input_ids", "attention_mask", "completion_mask"):
            assert batch[f"KL_{name}"].shape[1] == longest
        assert (batch["KL_completion_mask"].sum(dim=1) > 0).all()

    def test_a_damaged_picture_names_the_row(self) -> None:
        data = picture(64, 48).data
        assert data is not None
        cut = judged((ImageRef(data=data[:-30]),), line=9)
        with pytest.raises(RunError, match="D036") as caught:
            FeedbackCollator([NONE, cut], encoder(), kl=True)(rows(2))
        assert "rows.jsonl:9" in str(caught.value)
