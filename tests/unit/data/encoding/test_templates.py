"""Packaged chat templates: exact text, exact mask, and mPLUG-Owl's own mask table."""

from __future__ import annotations

import functools
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qlmm.data.encoding.chat_template import CUT
from qlmm.data.encoding.encoder import IGNORED, Encoder
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.reading.dataset import load_format
from qlmm.data.sample import ImageRef, Origin, Sample, Turn
from tests.families.build import family
from tests.tiny import TEMPLATES, tiny_processor

# Templates for one processor each, which takes only what that processor takes.
OWN = {"blip2": "blip-2", "paligemma": "paligemma"}
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja") if path.stem not in OWN)
PICTURE = ImageRoot(".").ref(Image.new("RGB", (40, 30), "red"))
LEAD = {"vicuna": " "}


@functools.lru_cache
def encoder(name: str, *, pad_is_end: bool = False) -> Encoder:
    return Encoder.make(tiny_processor(name, pad_is_end=pad_is_end))


def sample(*turns: tuple[Any, ...]) -> Sample:
    return Sample(tuple(Turn(turn[0], tuple(turn[1:])) for turn in turns), Origin("x", 1))


def seen(name: str, row: Sample, **settings: bool) -> tuple[str, str]:
    """What the model reads, and what it learns."""
    coder = encoder(name, **settings)
    batch = coder.batch([row])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    decode = coder.processor.tokenizer.decode
    return decode(ids), decode(labels[labels != IGNORED])


TALK = sample(
    ("system", "S."), ("user", PICTURE, "Hi"), ("assistant", "Yo."), ("user", "More", PICTURE), ("assistant", "Ok.")
)
P = "<image>" * 4
GOLDEN = {
    "chatml": "<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\n"
    + P
    + "Hi<|im_end|>\n<|im_start|>assistant\nYo.<|im_end|>\n"
    "<|im_start|>user\nMore" + P + "<|im_end|>\n<|im_start|>assistant\nOk.<|im_end|>\n",
    "owl": "<s>S.\nHuman: " + P + "\nHuman: Hi\nAI: Yo.</s>\nHuman: More\nHuman: " + P + "\nAI: Ok.</s>",
    "plain": "<s>" + P + "Yo.</s>" + P + "Ok.</s>",
    "vicuna": "<s>S. USER: " + P + "\nHi ASSISTANT: Yo.</s>USER: More\n" + P + " ASSISTANT: Ok.</s>",
}


def test_every_template_has_a_golden_text() -> None:
    assert sorted(GOLDEN) == NAMES


OWN_GOLDEN = {
    "blip2": (" Yo.", "Question: Hi Answer: Yo."),
    "paligemma": ("Yo.", "Hi\nYo."),
}


@pytest.mark.parametrize("name", OWN)
def test_golden_text_and_mask_of_templates_for_one_processor(name: str) -> None:
    processor = family(OWN[name]).processor
    processor.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    coder, end = Encoder.make(processor), str(processor.tokenizer.eos_token)
    learned, text = OWN_GOLDEN[name]
    row = sample(("user", PICTURE, "Hi"), ("assistant", "Yo."))
    batch = coder.batch([row])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    decode = processor.tokenizer.decode
    assert decode(labels[labels != IGNORED]) == learned + end
    assert f"{text}{end}" in decode(ids[ids != coder.slot_id])
    assert int((ids == coder.slot_id).sum()) == coder.slots(row.images) > 0
    prompt = coder.prompt(Sample(row.turns[:1], row.origin))["input_ids"][0].tolist()
    assert prompt == ids.tolist()[: labels.tolist().index(int(labels[labels != IGNORED][0]))]


@pytest.mark.parametrize("name", NAMES)
def test_golden_text_and_mask(name: str) -> None:
    end, lead = ("<|im_end|>" if name == "chatml" else "</s>"), LEAD.get(name, "")
    assert seen(name, TALK) == (GOLDEN[name], f"{lead}Yo.{end}{lead}Ok.{end}")


TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters=CUT), min_size=1, max_size=20)
HOSTILE = st.sampled_from(
    [
        "<image>",
        "</s>",
        "<|im_end|>",
        "<|im_start|>assistant\n",
        "<s>",
        "\nAI: ",
        "\nHuman: ",
        " ASSISTANT:",
        "{{ x }}",
        " ",
        "\n",
    ]
)
WORDS = st.lists(st.one_of(TEXTS, HOSTILE), min_size=1, max_size=4).map("".join)


@st.composite
def talks(draw: st.DrawFn) -> Sample:
    turns: list[tuple[Any, ...]] = [("system", draw(WORDS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(("user", *draw(st.lists(st.one_of(WORDS, st.just(PICTURE)), min_size=1, max_size=3))))
        turns.append(("assistant", draw(WORDS)))
    return sample(*turns)


@pytest.mark.parametrize("pad_is_end", [False, True])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(row=talks())
def test_learned_is_each_answer_and_its_end_and_no_text_becomes_a_control_token(
    name: str, pad_is_end: bool, row: Sample
) -> None:
    coder = encoder(name, pad_is_end=pad_is_end)
    tokenizer = coder.processor.tokenizer
    batch = coder.batch([row])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    end = "<|im_end|>" if name == "chatml" or pad_is_end else "</s>"
    answers = [turn.text for turn in row.turns if turn.role == "assistant"]
    learned = [label for label in labels if label != IGNORED]
    assert tokenizer.decode(learned) == "".join(LEAD.get(name, "") + answer + end for answer in answers)
    assert learned.count(tokenizer.convert_tokens_to_ids(end)) == len(answers)
    assert ids.count(coder.processor.image_token_id) == 4 * len(row.images)
    assert coder.processor.image_token_id not in learned
    ordinary = sample(*((t.role, *(p if isinstance(p, ImageRef) else "x" for p in t.parts)) for t in row.turns))
    assert _control(coder, row) == _control(coder, ordinary)


def _control(coder: Encoder, row: Sample) -> list[int]:
    """The control tokens of a row: those of its template and pictures, whatever its texts say."""
    known = set(coder.processor.tokenizer.added_tokens_decoder)
    return [token for token in coder.batch([row])["input_ids"][0].tolist() if token in known]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(row=talks())
def test_a_prompt_is_exactly_what_stands_before_the_answer(name: str, row: Sample) -> None:
    coder = encoder(name)
    batch = coder.batch([row])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    starts = [place for place in range(1, len(ids)) if labels[place] != IGNORED and labels[place - 1] == IGNORED]
    answered = [place for place, turn in enumerate(row.turns) if turn.role == "assistant"]
    if name == "plain" and any(not row.turns[place - 1].parts for place in answered):
        return
    for start, place in zip(starts, answered, strict=False):
        prompt = coder.prompt(Sample(row.turns[:place], row.origin))["input_ids"][0].tolist()
        assert prompt == ids[:start]


def split_rule(text: str) -> list[str]:
    """mPLUG-Owl's own rule, as a check on ours: split on the bare markers, the piece after ``AI: `` is learned."""
    pieces = re.split("(<image>|AI: |\nHuman: )", text)
    return [piece for before, piece in pairwise(pieces) if before == "AI: "]


class TestOwl:
    """The mask table of mPLUG-Owl, one character per token, 65 tokens per picture."""

    @staticmethod
    def encode(text: str, max_length: int) -> tuple[int, str, int]:
        from tokenizers import Tokenizer, models
        from transformers import LlavaProcessor

        processor = tiny_processor("owl")
        vocabulary = {k: v for k, v in processor.tokenizer.get_vocab().items() if v < 256}
        letters = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        letters.pre_tokenizer = processor.tokenizer.backend_tokenizer.pre_tokenizer
        letters.decoder = processor.tokenizer.backend_tokenizer.decoder
        tokenizer = type(processor.tokenizer)(
            tokenizer_object=letters, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
        )
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
        processor = LlavaProcessor(
            processor.image_processor, tokenizer, 14, "full", chat_template=processor.chat_template,
            num_additional_image_tokens=61,
        )  # fmt: skip
        pictures = ["x.png"] * text.count("<image>")
        turns = load_format("owl").read({"text": text, "image": pictures}, ImageRoot("."))
        swapped = tuple(Turn(t.role, tuple(PICTURE if isinstance(p, ImageRef) else p for p in t.parts)) for t in turns)
        coder = Encoder.make(processor, max_length=max_length)
        batch = coder.batch([Sample(swapped, Origin("x", 1))])
        labels = batch["labels"][0]
        kept = len(coder.fit([Sample(swapped, Origin("x", 1))]).samples)
        return batch["input_ids"].shape[1], tokenizer.decode(labels[labels != IGNORED]), kept

    @pytest.mark.parametrize(
        ("text", "max_length", "used", "learned"),
        [
            ("S.\nHuman: hi\nAI: yo\nHuman: b\nAI: c", 60, 37, "yo</s>c</s>"),
            ("S.\nHuman: <image>\nHuman: hi\nAI: yo\nHuman: b\nAI: c", 130, 110, "yo</s>c</s>"),
        ],
    )
    def test_rows_that_fit_have_the_original_lengths_and_targets(
        self, text: str, max_length: int, used: int, learned: str
    ) -> None:
        assert self.encode(text, max_length) == (used, learned, 1)
        assert "".join(piece + "</s>" for piece in split_rule(text)) == learned

    @pytest.mark.parametrize(
        ("text", "max_length"),
        [
            ("S.\nHuman: <image>\nHuman: hi\nAI: yo", 90),
            ("S.\nHuman: hi\nAI: yoyoyoyoyoyoyoyo", 20),
            ("S.\nHuman: <image>\nHuman: hi\nAI: yo", 40),
        ],
    )
    def test_rows_the_original_cuts_or_leaves_without_targets_are_left_out(self, text: str, max_length: int) -> None:
        assert self.encode(text, max_length)[2] == 0

    def test_the_originals_defect_is_not_repeated(self) -> None:
        text = "S.\nHuman: hi\nAI: say AI: ok"
        assert split_rule(text) == ["say ", "ok"]
        assert self.encode(text, 60)[1] == "say AI: ok</s>"
