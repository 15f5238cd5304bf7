"""Rows with thoughts are asked as they are answered: by the Qwen 3 template in TRL's training form."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trl

from qlmm.core.errors import ModelError
from qlmm.data.encoding.encoder import IGNORED, Encoder
from qlmm.data.sample import Origin, Preference, Sample, Turn
from qlmm.recipe.schema import DataSection, Source
from qlmm.training.rows import asked_so, thinking
from tests.tiny import tiny_processor

THOUGHT = "<think>\ngreen paint\n</think>\n\n"
EMPTY = "<think>\n\n</think>\n\n"
OPENING = "<|im_start|>assistant\n"


def row(answer: str) -> Sample:
    return Sample((Turn("user", ("Colour?",)), Turn("assistant", (answer,))), Origin("rows.jsonl", 7))


def data(thinks: bool | None = None) -> DataSection:
    return DataSection(sources=(Source(path="-"),), thinking=thinks)


@cache
def encoder() -> Encoder:
    processor = tiny_processor()
    template = Path(trl.__file__).parent / "chat_templates/qwen3_training.jinja"
    processor.chat_template = template.read_text("utf-8")
    return Encoder.make(processor)


def split(own: Encoder, sample: Sample) -> tuple[str, str, str]:
    """What is asked; what is read before the answer; what is learned."""
    batch: dict[str, Any] = own.batch([sample])
    learned = (batch["labels"][0] != IGNORED).tolist()
    ids, decode = batch["input_ids"][0].tolist(), own.processor.tokenizer.decode
    asked = own.prompt(Sample(sample.turns[:1], sample.origin))["input_ids"][0].tolist()
    first = learned.index(True)
    return decode(asked), decode(ids[:first]), decode([one for one, kept in zip(ids, learned, strict=True) if kept])


def test_rows_without_thoughts_are_asked_past_an_empty_one() -> None:
    own = thinking(encoder(), data(), [row("Green.")])
    asked, before, learned = split(own, row("Green."))
    assert asked == before
    assert asked.endswith(OPENING + EMPTY)
    assert learned.startswith("Green.")
    assert asked_so(data(), own).thinking is None


@pytest.mark.parametrize("answer", ["Green.", f"{THOUGHT}Green."])
def test_one_thought_in_the_rows_lets_all_of_them_be_asked_for_one(answer: str) -> None:
    own = thinking(encoder(), data(), [row("Red."), row(f"{THOUGHT}Green.")])
    asked, before, learned = split(own, row(answer))
    assert asked == before
    assert asked.endswith(OPENING)
    assert learned.startswith((THOUGHT if answer.startswith("<") else EMPTY) + "Green.")
    own.check_asked([row(answer)])
    assert asked_so(data(), own).thinking is True


def test_a_thought_in_a_rejected_answer_counts() -> None:
    pair = Preference((Turn("user", ("Q",)),), "A", f"{THOUGHT}B", Origin("rows.jsonl", 1))
    assert thinking(encoder(), data(), [pair]).thinks


def test_thoughts_behind_a_prompt_that_rules_them_out_are_refused_with_their_row() -> None:
    own = thinking(encoder(), data(False), [row(f"{THOUGHT}Green.")])
    own.check_asked([row("Green.")])
    with pytest.raises(ModelError, match="another prompt") as caught:
        own.check_asked([row(f"{THOUGHT}Green.")])
    (problem,) = caught.value.problems
    assert problem.code == "D045"
    assert problem.where
    assert problem.where.line == 7


@pytest.mark.parametrize("template", ["chatml", "vicuna", "owl"])
def test_templates_that_know_no_thoughts_are_asked_as_before(template: str) -> None:
    own = Encoder.make(tiny_processor(template))
    asked, before, learned = split(own.thinking(), row(f"{THOUGHT}Green."))
    assert asked == before == split(own, row("Green."))[0]
    assert THOUGHT.strip() in learned
