"""For every family: what is learned is each answer and the token that ends it, and a prompt is what stands before."""

from __future__ import annotations

import functools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from qlmm.core.errors import ModelError
from qlmm.data.encoding.encoder import IGNORED, Encoder
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.sample import Origin, Sample, Turn
from tests.families.build import NotOffline, family, names
from tests.families.rows import ROWS
from tests.tiny import template

PICTURES = tuple(ImageRoot(".").ref(Image.new("RGB", size, "red")) for size in ((64, 64), (50, 37), (30, 90)))
# Words that no template or tokenizer takes for its own, and some that look like markers.
TEXTS = st.text(st.sampled_from("ab .,?!\n"), min_size=1, max_size=12).filter(lambda text: bool(text.strip()))
ODD = st.sampled_from(["<image>", "</s>", "<|im_end|>", "ASSISTANT:", "a <b> c", "Äöü 好"])


@functools.cache
def encoder(name: str) -> Encoder:
    """The encoder of a family.

    Raises:
        NotOffline: it cannot be built here.
        ModelError: its processor cannot be used for training.
    """
    processor = family(name).processor
    if processor.chat_template is None:
        processor.chat_template = template("blip2" if ROWS[name].marker == "" else "paligemma")
    decoder = bool(family(name).config.is_encoder_decoder)
    return Encoder.make(processor, decoder=decoder)


@st.composite
def talks(draw: st.DrawFn, *, several: bool, words_alone: bool) -> Sample:
    """A conversation of one to three exchanges; the first shows a picture where there must be one."""
    turns = []
    for number in range(draw(st.integers(1, 3))):
        least = 1 if number == 0 and not words_alone else 0
        most = 2 if several else int(number == 0)
        shown = draw(st.lists(st.sampled_from(PICTURES), min_size=least, max_size=max(least, most)))
        turns.append(Turn("user", (*shown, draw(TEXTS | ODD))))
        turns.append(Turn("assistant", (draw(TEXTS | ODD).strip(),)))
    return Sample(tuple(turns), Origin("x", 1))


def usable() -> list[str]:
    """Families whose processor can be used for training; docs/families.md says why the others cannot."""
    found = []
    for name in names():
        try:
            encoder(name)
        except (NotOffline, ModelError, AttributeError, KeyError):
            continue
        found.append(name)
    return found


@pytest.mark.parametrize("name", usable())
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_learned_is_each_answer_and_its_end(name: str, data: st.DataObject) -> None:
    row, coder = ROWS[name], encoder(name)
    talk = data.draw(talks(several=row.several, words_alone=row.words_alone))
    batch = coder.batch([talk])
    labels = [label for label in batch["labels"][0].tolist() if label != IGNORED]
    tokenizer = coder.processor.tokenizer
    control = set(tokenizer.added_tokens_decoder)
    answers = [turn.text for turn in talk.turns if turn.role == "assistant"]
    answers = answers[-1:] if "decoder_input_ids" in batch or coder._decoder else answers
    ends = [label for label in labels if label in control]
    assert labels[-1] in control or tokenizer.decode(labels).strip().endswith(tuple(tokenizer.all_special_tokens))
    assert 1 <= len(ends) <= len(answers)
    said = tokenizer.decode([label for label in labels if label not in control])
    assert "".join(said.split()) == "".join("".join(answers).split())


@pytest.mark.parametrize("name", usable())
def test_a_prompt_is_what_stands_before_the_answer(name: str) -> None:
    coder = encoder(name)
    if coder._decoder:
        pytest.skip("answers stand in the decoder")
    talk = Sample((Turn("user", (PICTURES[0], "what?")), Turn("assistant", ("a cat",))), Origin("x", 1))
    batch = coder.batch([talk])
    start = next(place for place, label in enumerate(batch["labels"][0].tolist()) if label != IGNORED)
    prompt = coder.prompt(Sample(talk.turns[:1], talk.origin))["input_ids"][0].tolist()
    assert prompt == batch["input_ids"][0].tolist()[:start]


@pytest.mark.parametrize("name", usable())
def test_a_row_takes_the_tokens_that_were_measured(name: str) -> None:
    coder = encoder(name)
    shown = [(picture,) for picture in PICTURES] + ([PICTURES[:2], PICTURES[1:]] if ROWS[name].several else [])
    for pictures in shown:
        talk = Sample((Turn("user", (*pictures, "what?")), Turn("assistant", ("a cat",))), Origin("x", 1))
        batch = coder.batch([talk])
        (lengths,) = coder.measure([talk])
        assert int((batch["input_ids"][0] == coder.slot_id).sum()) == coder.slots(pictures)
        if not coder._decoder:
            # Separators beside a picture may melt into neighbours: Idefics 2 leaves out doubled ones.
            assert abs(lengths.total - int(batch["attention_mask"][0].sum())) <= 3 * len(pictures)


def test_most_families_can_be_used() -> None:
    assert len(usable()) >= 55
