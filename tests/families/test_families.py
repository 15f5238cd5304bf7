"""Every image-text-to-text class of the library: built tiny, shown pictures, saved and read back, or refused aloud."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature, PreTrainedModel

from tests.families.build import Family, NotOffline, family, inputs_of, names, save, text_with, tiny_model
from tests.families.rows import REFUSED, ROWS
from tests.families.videos import videos_stood_in

BUILT = [name for name in names() if name in ROWS]
FEWEST_BUILT = 68
SQUARE, ODD, TALL = (64, 64), (50, 37), (30, 90)
NOTHING_NEW = 1e-6


@cache
def made(name: str) -> tuple[Family, PreTrainedModel]:
    """Built once: no test here changes a family or a model."""
    one = family(name)
    return one, tiny_model(one)


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Noise: no two pictures are alike, whatever is cut or shrunk."""
    width, height = size
    noise = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def shown(one: Family, *rows: list[Image.Image]) -> BatchFeature:
    """One row of text for each list of pictures."""
    return inputs_of(one, [text_with(one, len(row)) for row in rows], list(rows), **padding(len(rows)))


def padding(rows: int) -> dict[str, bool]:
    return {"padding": True} if rows > 1 else {}


@torch.no_grad()
def said(model: PreTrainedModel, inputs: BatchFeature) -> torch.Tensor:
    torch.manual_seed(0)  # a model that writes by diffusion starts from noise
    logits: torch.Tensor = model(**inputs).logits
    return logits


def test_no_class_is_left_out() -> None:
    assert set(ROWS) | set(REFUSED) == set(names())
    assert not set(ROWS) & set(REFUSED)
    assert len(BUILT) >= FEWEST_BUILT


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_why_in_a_sentence(name: str) -> None:
    with pytest.raises(NotOffline, match=r"^[A-Z].{10,}\.$"):
        family(name)


@pytest.mark.parametrize("name", BUILT)
def test_weights_are_drawn_from_the_seed(name: str) -> None:
    one, model = made(name)
    again, other = tiny_model(one), tiny_model(one, seed=1)
    weights = dict(model.named_parameters())
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in weights.values())
    assert all(torch.equal(weights[key], weight) for key, weight in again.named_parameters())
    assert not all(torch.equal(weights[key], weight) for key, weight in other.named_parameters())
    assert not model.training
    assert sum(weight.numel() for weight in weights.values()) < 5e6


@pytest.mark.parametrize("name", BUILT)
def test_every_token_is_known_and_the_pictures_place_is_the_tokenizers(name: str) -> None:
    one, model = made(name)
    tokenizer, image = one.processor.tokenizer, ROWS[name].image
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer)
    settings = one.config.to_dict()
    told = {settings[key] for key in ("image_token_id", "image_token_index") if settings.get(key) is not None}
    assert told <= {tokenizer.convert_tokens_to_ids(image) if image else None}


def test_a_place_may_be_beyond_what_a_model_can_say() -> None:
    one, model = made("mllama")
    logits = said(model, shown(one, [picture(SQUARE)]))
    assert one.config.image_token_id == logits.shape[-1] == len(one.processor.tokenizer) - 1


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize("size", [SQUARE, ODD, TALL], ids=["square", "odd", "tall"])
def test_a_picture_of_any_shape(name: str, size: tuple[int, int]) -> None:
    one, model = made(name)
    assert said(model, shown(one, [picture(size)])).isfinite().all()


@pytest.mark.parametrize("name", BUILT)
def test_what_is_said_depends_on_the_picture(name: str) -> None:
    one, model = made(name)
    first, second = (said(model, shown(one, [picture(SQUARE, seed)])) for seed in (1, 2))
    assert (first - second).abs().max() > NOTHING_NEW


@pytest.mark.parametrize("name", [name for name in BUILT if ROWS[name].counted])
def test_places_are_as_many_as_features(name: str) -> None:
    """With one place fewer the model refuses, so with all of them the numbers were equal."""
    one, model = made(name)
    place, word = one.processor.tokenizer.convert_tokens_to_ids([ROWS[name].image or "", "a"])
    inputs = shown(one, [picture(ODD)])
    places = (inputs["input_ids"][0] == place).nonzero()
    inputs["input_ids"][0, places[-1]] = word
    with pytest.raises((ValueError, RuntimeError, IndexError, StopIteration)):
        said(model, inputs)


@pytest.mark.parametrize("name", [name for name in BUILT if ROWS[name].several])
def test_two_pictures_in_a_row(name: str) -> None:
    one, model = made(name)
    inputs = shown(one, [picture(SQUARE), picture(ODD, 1)])
    assert len(inputs["input_ids"]) == 1
    assert said(model, inputs).isfinite().all()


@pytest.mark.parametrize("name", BUILT)
def test_a_batch_of_two_sizes(name: str) -> None:
    one, model = made(name)
    logits = said(model, shown(one, [picture(SQUARE)], [picture(TALL, 1)]))
    assert logits.isfinite().all()
    assert len(logits) == 2


@pytest.mark.parametrize("name", BUILT)
def test_words_alone(name: str) -> None:
    one, model = made(name)
    if ROWS[name].words_alone:
        assert said(model, inputs_of(one, [text_with(one, 0)], None)).isfinite().all()
    else:
        with pytest.raises((TypeError, ValueError)):
            said(model, inputs_of(one, [text_with(one, 0)], None))


@pytest.mark.parametrize("name", BUILT)
def test_saved_and_read_back(name: str, tmp_path: Path) -> None:
    one, model = made(name)
    save(one, tmp_path)
    with videos_stood_in():
        processor = AutoProcessor.from_pretrained(tmp_path)
    read, faults = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not faults["missing_keys"] | faults["unexpected_keys"]
    assert type(processor) is type(one.processor)
    assert processor.chat_template == one.processor.chat_template
    before = said(model, shown(one, [picture(ODD)]))
    after = said(read.eval(), shown(replace(one, processor=processor), [picture(ODD)]))
    torch.testing.assert_close(before, after)
