"""Pairs in one row: every token stands where two rows would have it, pictures are there once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from qlmm.core.errors import ModelError
from qlmm.data.encoding.encoder import Encoder
from qlmm.data.encoding.shared_prefix import CHOSEN, PROMPT, packed
from qlmm.data.sample import ImageRef, Origin, Preference, Turn
from tests.tiny import tiny_processor

ORIGIN = Origin("pairs.jsonl", 1)


def pair(question: tuple[ImageRef | str, ...], chosen: str, rejected: str) -> Preference:
    return Preference((Turn("user", question),), chosen, rejected, ORIGIN)


@pytest.fixture
def shown(tmp_path: Path) -> ImageRef:
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "a.png")
    return ImageRef(path=tmp_path / "a.png")


@pytest.fixture
def rows(shown: ImageRef) -> list[Preference]:
    return [
        pair((shown, "what is this ?"), "a cat", "the red the red the red"),
        pair((shown, "what is in", shown), "a cat is in the red a cat", "the"),
        pair(("what is one ?",), "one", "a red cat on the cat"),
    ]


@pytest.mark.parametrize("template", ["vicuna", "chatml", "owl", "plain"])
def test_answers_are_the_tokens_that_two_rows_would_have(template: str, rows: list[Preference]) -> None:
    encoder = Encoder.make(tiny_processor(template))
    one, two = packed(encoder, rows), encoder.pairs(rows)
    answers = [
        ids[mask.bool()].tolist()
        for batch in (one, two)
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert answers[:6] == answers[6:]
    assert all(answers)


def test_a_row_is_the_prompt_and_both_answers(rows: list[Preference]) -> None:
    encoder = Encoder.make(tiny_processor("vicuna"))
    batch, plain = packed(encoder, rows), encoder.pairs(rows)
    model, layout = batch["packed"], batch["layout"]
    for number in range(3):
        segments = layout["segments"][number]
        prompt, chosen = int((segments == PROMPT).sum()), int((segments == CHOSEN).sum())
        row = model["input_ids"][number, : int(model["attention_mask"][number].sum())].tolist()
        sides = [plain["input_ids"][at][plain["completion_mask"][at].bool()].tolist() for at in (number, number + 3)]
        assert row[:prompt] == plain["input_ids"][number, :prompt].tolist()
        assert row[prompt : prompt + chosen] == sides[0]
        assert row[prompt + chosen :] == sides[1]


def test_pictures_are_there_once(rows: list[Preference]) -> None:
    encoder = Encoder.make(tiny_processor("vicuna"))
    assert len(packed(encoder, rows)["packed"]["pixel_values"]) == 3
    assert len(encoder.pairs(rows)["pixel_values"]) == 6


def test_the_place_before_an_answer_is_the_last_of_its_prompt(rows: list[Preference]) -> None:
    batch = packed(Encoder.make(tiny_processor("vicuna")), rows)
    prompt = (batch["layout"]["segments"] == PROMPT).sum(dim=1)
    assert torch.equal(batch["take"][:, 0], torch.cat([prompt, prompt]) - 1)
    assert not batch["completion_mask"][:, 0].any()


def test_a_template_whose_prompt_depends_on_the_answer_is_refused(shown: ImageRef) -> None:
    processor = tiny_processor("vicuna")
    loop = "{%- for message in messages"
    peek = "{{ 'red ' if 'cat' in messages[-1]['content'] | string else '' }}"
    processor.chat_template = processor.chat_template.replace(loop, peek + loop, 1)
    encoder = Encoder.make(processor)
    with pytest.raises(ModelError, match="D046"):
        packed(encoder, [pair((shown, "what ?"), "a cat", "the red")])
