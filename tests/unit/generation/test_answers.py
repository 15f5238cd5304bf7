"""An answer is greedy unless asked otherwise, holds no prompt and no special token, and leaves the model as it was."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from qlmm.data.media.images import BadImage
from qlmm.data.sample import ImageRef, Origin, Sample, Turn
from qlmm.generation.answers import Streamer, answer, open_question, thumbnail
from tests.talking import END, Letters, Loaded

QUESTION = Sample((Turn("user", (ImageRef(data=b"x"), "What?")),), Origin("a", 1))


def test_the_answer_alone_comes_back() -> None:
    loaded = Loaded()
    assert answer(loaded.model, loaded.encoder, QUESTION, 8) == "turn 1, 1 pictures"


def test_it_is_greedy_and_knows_every_end() -> None:
    loaded = Loaded()
    answer(loaded.model, loaded.encoder, QUESTION, 8)
    asked = loaded.model.settings
    assert asked["do_sample"] is False
    assert asked["temperature"] is None
    assert asked["max_new_tokens"] == 8
    assert asked["eos_token_id"] == [END, 7]


def test_drawing_keeps_the_settings_of_the_base() -> None:
    loaded = Loaded()
    answer(loaded.model, loaded.encoder, QUESTION, 8, draw=True)
    assert loaded.model.settings["do_sample"] is True
    assert "temperature" not in loaded.model.settings


@pytest.mark.parametrize("training", [True, False])
def test_it_answers_in_evaluation_mode_and_puts_the_mode_back(training: bool) -> None:
    loaded = Loaded()
    loaded.model.train(training)
    answer(loaded.model, loaded.encoder, QUESTION, 8)
    assert loaded.model.was_training is False
    assert loaded.model.training is training


def test_the_expected_answer_is_never_shown_to_the_model() -> None:
    loaded = Loaded()
    row = Sample((*QUESTION.turns, Turn("assistant", ("a cat",))), Origin("a", 1))
    answer(loaded.model, loaded.encoder, row, 8)
    assert loaded.encoder.samples == [QUESTION]
    assert open_question(QUESTION) is QUESTION


def test_a_stream_gives_the_same_words_without_prompt_or_end() -> None:
    loaded, pieces = Loaded(), []
    said = answer(loaded.model, loaded.encoder, QUESTION, 8, Streamer(Letters(), pieces.append))
    assert "".join(pieces).rstrip() == said
    assert len(pieces) > 1


def test_a_thumbnail_is_a_small_png_of_the_whole_picture(tmp_path: Path) -> None:
    Image.new("RGB", (1000, 500), "red").save(tmp_path / "a.jpg")
    small = Image.open(io.BytesIO(thumbnail(ImageRef(path=tmp_path / "a.jpg"))))
    assert (small.format, small.size) == ("PNG", (256, 128))
    with pytest.raises(BadImage):
        thumbnail(ImageRef(path=tmp_path / "none.jpg"))
