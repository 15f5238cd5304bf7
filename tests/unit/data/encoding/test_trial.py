"""A processor is tried once, and processor and tokenizer stay as they are."""

from __future__ import annotations

import copy

import pytest
from PIL import Image

from qlmm.core.errors import ModelError
from qlmm.data.encoding.chat_template import Renderer
from qlmm.data.encoding.encoder import Encoder
from qlmm.data.encoding.marked_processor import MarkedProcessor
from qlmm.data.encoding.marked_tokenizer import marked
from qlmm.data.encoding.trial import PictureTokens, Trial
from tests.tiny import TOKENS_PER_IMAGE, tiny_processor


def test_what_a_processor_does_with_pictures_is_found_out() -> None:
    processor = tiny_processor("owl")
    own = MarkedProcessor(processor)
    trial = Trial(own, Renderer(processor))
    assert own.by_row
    assert trial.slot_id == processor.tokenizer.convert_tokens_to_ids("<image>") == Encoder.make(processor).slot_id
    assert trial.takes_text_only
    assert trial.takes_both
    assert trial.picture((30, 20)) == PictureTokens(TOKENS_PER_IMAGE, TOKENS_PER_IMAGE)


def test_nothing_is_left_behind_in_processor_or_tokenizer() -> None:
    processor = tiny_processor("owl")
    tokenizer, kind, before = processor.tokenizer, type(processor.tokenizer), copy.copy(vars(processor))
    own = MarkedProcessor(processor)
    texts = [marked(Renderer(processor).probe(pictures=1))]
    first, _ = own.run(texts, [[Image.new("RGB", (32, 32))]])
    second, _ = own.run(texts, [[Image.new("RGB", (32, 32))]])
    assert first == second
    assert vars(processor) == before
    assert processor.tokenizer is tokenizer
    assert type(tokenizer) is kind


def test_a_tokenizer_without_padding_is_refused_before_anything_is_tried() -> None:
    processor = tiny_processor("owl")
    processor.tokenizer.pad_token = None
    with pytest.raises(ModelError, match="D034"):
        Encoder.make(processor)
