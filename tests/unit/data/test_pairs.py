"""Pairs are their two sides, encoded as each is alone; only the last answers are learned; both sides must fit."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qlmm.core.errors import ModelError, RunError
from qlmm.data.checks import token_counts, traced_pair
from qlmm.data.collate import PairCollator, rows
from qlmm.data.encode import IGNORED, Encoder
from qlmm.data.mixture import Mixture
from qlmm.data.paths import ImageRoot
from qlmm.data.sample import ImageRef, Origin, Preference, Sample, Turn
from tests.tiny import TOKENS_PER_IMAGE, tiny_llava, tiny_processor

TEMPLATES = ["chatml", "owl", "vicuna", "plain"]


def picture(width: int = 40, height: int = 30, colour: str = "red") -> ImageRef:
    return ImageRoot(".").ref(Image.new("RGB", (width, height), colour))


def pair(*prompt: tuple[Any, ...], chosen: str = "A red cat.", rejected: str = "A dog.", line: int = 1) -> Preference:
    """A preference whose prompt's turns are user and assistant by turns, each told by its parts."""
    turns = tuple(Turn("assistant" if n % 2 else "user", tuple(parts)) for n, parts in enumerate(prompt))
    return Preference(turns, chosen, rejected, Origin("rows.jsonl", line))


@functools.lru_cache
def encoder(template: str = "chatml", **settings: Any) -> Encoder:
    return Encoder(tiny_processor(template), **settings)


NONE = pair(("Hi",), chosen="Ho", rejected="Hum hum hum", line=2)
ONE = pair((picture(), "What is this?"))
TWO = pair(
    (picture(9, 300, "blue"), "First."),
    ("Thin.",),
    ("Again?", picture(1, 1)),
    chosen="Dot.",
    rejected="A dot, no line.",
    line=3,
)


def text(template: str, ids: torch.Tensor) -> str:
    return str(encoder(template).processor.tokenizer.decode(ids))


def check_halves(encoder: Encoder, given: list[Preference], batch: dict[str, torch.Tensor]) -> None:
    """Every row of a batch of pairs has the tokens of its side encoded alone."""
    assert len(batch["input_ids"]) == 2 * len(given)
    sides = [one.side(name) for name in ("chosen", "rejected") for one in given]
    for number, side in enumerate(sides):
        alone = encoder.batch([side])
        length = alone["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][number, :length], alone["input_ids"][0])
        assert torch.equal(batch["attention_mask"][number, :length], alone["attention_mask"][0])
        assert not batch["attention_mask"][number, length:].any()
        assert not batch["completion_mask"][number, length:].any()
        own = batch["completion_mask"][number, :length].bool()
        assert own.any()
        assert (alone["labels"][0][own] != IGNORED).all()


def test_pairs_with_none_one_and_two_pictures_share_a_batch_that_a_model_takes() -> None:
    given = [NONE, ONE, TWO]
    batch = encoder().pairs(given)
    assert set(batch) == {"input_ids", "attention_mask", "completion_mask", "pixel_values"}
    assert batch["pixel_values"].shape == (6, 3, 28, 28)
    assert torch.equal(batch["pixel_values"][:3], batch["pixel_values"][3:])
    alone = torch.cat([encoder().batch([one.side("chosen")])["pixel_values"] for one in (ONE, TWO)])
    assert torch.equal(batch["pixel_values"][:3], alone)
    check_halves(encoder(), given, batch)
    mask = batch.pop("completion_mask")
    loss = tiny_llava(encoder().processor)(**batch, labels=batch["input_ids"].masked_fill(mask == 0, IGNORED)).loss
    assert torch.isfinite(loss)


def test_without_a_picture_there_are_no_pixels() -> None:
    assert set(encoder().pairs([NONE])) == {"input_ids", "attention_mask", "completion_mask"}


WORDS = st.text(max_size=15).filter(str.strip)


@settings(max_examples=40, deadline=None)
@given(
    prompt=st.lists(WORDS, min_size=1, max_size=5).filter(lambda words: len(words) % 2 == 1),
    answers=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3),
    shown=st.integers(0, 2),
    template=st.sampled_from(TEMPLATES),
)
def test_pairs_are_both_sides_encoded_alone(
    prompt: list[str], answers: list[tuple[str, str]], shown: int, template: str
) -> None:
    first = ([*[picture()] * shown, prompt[0]], *([word] for word in prompt[1:]))
    given = [pair(*first, chosen=chosen, rejected=rejected) for chosen, rejected in answers]
    batch = encoder(template).pairs(given)
    check_halves(encoder(template), given, batch)
    asked = encoder(template).prompt(Sample(given[0].prompt, Origin("x", 1)))["input_ids"][0]
    for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True):
        assert torch.equal(ids[: int(mask.argmax())], asked)
    measured = encoder(template).measure(given)
    halves = batch["attention_mask"].sum(dim=1).view(2, -1)
    assert [one.total for one in measured] == halves.amax(dim=0).tolist()
    assert [one.supervised for one in measured] == batch["completion_mask"].sum(dim=1).view(2, -1).sum(dim=0).tolist()
    assert [one.visual for one in measured] == [TOKENS_PER_IMAGE * shown] * len(given)


@pytest.mark.parametrize(
    ("template", "end"), [("chatml", "<|im_end|>"), ("owl", "</s>"), ("vicuna", "</s>"), ("plain", "</s>")]
)
def test_the_mask_is_the_last_answer_and_its_end_alone(template: str, end: str) -> None:
    batch = encoder(template).pairs([TWO, NONE])
    told = [
        text(template, ids[mask.bool()]).strip()
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert told == [f"Dot.{end}", f"Ho{end}", f"A dot, no line.{end}", f"Hum hum hum{end}"]


def test_padding_that_is_the_end_token_is_not_learned() -> None:
    ending = Encoder(tiny_processor("chatml", pad_is_end=True))
    batch = ending.pairs([NONE])
    assert batch["completion_mask"].sum(dim=1).tolist() == [
        len(ending.processor.tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"])
        for answer in ("Ho", "Hum hum hum")
    ]


def test_a_base_with_a_decoder_of_its_own_takes_no_pairs() -> None:
    apart = Encoder(tiny_processor(), decoder=True)
    for method in (apart.pairs, apart.measure, apart.fit):
        with pytest.raises(ModelError, match="D044"):
            method([ONE])


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_pair_is_left_out_when_one_side_is_too_long_and_told_which(side: str) -> None:
    long = pair(("Hi",), **{side: "much " * 40}, line=7)
    lengths = encoder().measure([long.side("chosen" if side == "chosen" else "rejected")])[0]
    tight = Encoder(tiny_processor(), max_length=lengths.total - 1)
    fitted = tight.fit([NONE, long])
    assert fitted.samples == (NONE,)
    (dropped,) = fitted.dropped
    assert dropped.origin.line == 7
    assert dropped.reason == f"{side} answer: 0 visual + {lengths.text} text tokens > {lengths.total - 1}"
    assert Encoder(tiny_processor(), max_length=lengths.total).fit([NONE, long]).samples == (NONE, long)


def test_both_sides_are_named_when_both_are_too_long() -> None:
    (dropped,) = Encoder(tiny_processor(), max_length=5).fit([ONE]).dropped
    assert dropped.reason.startswith("chosen answer: 4 visual + ")
    assert "; rejected answer: 4 visual + " in dropped.reason


def test_shortening_takes_from_the_prompt_of_both_sides() -> None:
    whole = encoder().measure([TWO])[0].total
    fitted = Encoder(tiny_processor(), max_length=whole - 1, overlong="shorten").fit([NONE, TWO])
    assert fitted.shortened == 1
    kept = fitted.samples[1]
    assert kept.prompt == (Turn("user", (*TWO.prompt[0].parts[:1], *TWO.prompt[2].parts)),)
    assert (kept.chosen, kept.rejected, kept.images) == (TWO.chosen, TWO.rejected, TWO.images)
    assert fitted.lengths == tuple(encoder().measure(fitted.samples))


def test_counts_are_of_the_longer_side_and_both_answers() -> None:
    counts = token_counts(encoder(), [NONE])
    sides = encoder().measure([NONE.side("chosen"), NONE.side("rejected")])
    assert counts.total.max == max(side.total for side in sides)
    assert counts.supervised.max == sum(side.supervised for side in sides)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_pair_is_traced_with_its_prompt_once(template: str) -> None:
    shown = traced_pair(encoder(template), TWO)
    assert "learned" not in {piece.kind for piece in shown.prompt}
    assert [piece.tokens for piece in shown.prompt if piece.kind == "picture"] == [TOKENS_PER_IMAGE] * 2
    for side, answer in ((shown.chosen, "Dot."), (shown.rejected, "A dot, no line.")):
        assert side[0].kind == "learned"
        assert side[0].text.strip().startswith(answer)
    totals = [sum(piece.tokens for piece in [*shown.prompt, *side]) for side in (shown.chosen, shown.rejected)]
    sides = encoder(template).measure([TWO.side("chosen"), TWO.side("rejected")])
    assert totals == [side.total for side in sides]


class TestPairCollator:
    def test_numbers_become_batches_of_pairs_that_know_their_origins(self) -> None:
        collate, numbers = PairCollator([NONE, ONE, TWO], encoder()), rows(3)
        batch, expected = collate([numbers[2], numbers[0]]), encoder().pairs([TWO, NONE])
        assert set(batch) == set(expected)
        assert all(torch.equal(batch[name], expected[name]) for name in batch)
        assert [origin.line for origin in collate.last_origins] == [3, 2]

    def test_slots_of_both_halves_are_checked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        own, collate = encoder().pairs, PairCollator([NONE, ONE], encoder())

        def without_the_last(pairs: Any) -> dict[str, torch.Tensor]:
            batch = own(pairs)
            batch["input_ids"][-1][batch["input_ids"][-1] == encoder().slot_id] = 0
            return batch

        monkeypatch.setattr(encoder(), "pairs", without_the_last)
        with pytest.raises(RunError, match="0 picture slots for 4 visual tokens") as caught:
            collate(rows(2))
        assert "rows.jsonl:1" in str(caught.value)

    def test_a_damaged_picture_names_the_row(self) -> None:
        data = picture(64, 48).data
        assert data is not None
        cut = pair((ImageRef(data=data[:-30]),), line=9)
        with pytest.raises(RunError, match="D036") as caught:
            PairCollator([NONE, cut], encoder())(rows(2))
        assert "rows.jsonl:9" in str(caught.value)


def test_pairs_are_mixed_like_other_rows() -> None:
    mixture = Mixture.of([NONE, ONE, TWO], [0, 0, 0], [1.0])
    assert [(one.text_only, one.rows) for one in mixture.strata] == [(False, (1, 2)), (True, (0,))]
