"""Tiny random models of every image-text-to-text class of the library, each with its own processor, built offline.

What holds for one family need not for the next: how many places a picture takes, what its tensors are called, which
batches are allowed. Code that claims to work for all of them is tried on all of them.

Usage: ``one = family("qwen2_5_vl"); model = tiny_model(one)``
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tests.families.processors import build_processor
from tests.families.row import Row
from tests.families.rows import REFUSED, ROWS
from tests.families.shrink import shrink


class NotOffline(Exception):
    """This class cannot be built here; the message says why in one sentence."""


@dataclass(frozen=True)
class Family:
    """One kind of model.

    Attributes:
        name: its ``model_type``.
        config: its configuration, shrunk.
        processor: its own processor, with a tiny tokenizer and the family's chat template, where it has one.
    """

    name: str
    config: PreTrainedConfig
    processor: ProcessorMixin


def names() -> list[str]:
    """Every class the library loads as an image-text-to-text model, whether it can be built here or not."""
    return list(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def family(name: str) -> Family:
    """A fresh family: nothing is shared with one asked for before.

    Raises:
        NotOffline: it cannot be built here; the message says why.
    """
    if name in REFUSED:
        raise NotOffline(REFUSED[name])
    row = ROWS[name]
    processor = build_processor(name, row)
    return Family(name, _config(name, row, processor.tokenizer), processor)


def _config(name: str, row: Row, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    made = CONFIG_MAPPING[name]
    tokens = dict(row.ids)
    if row.image is not None:
        tokens |= dict.fromkeys(("image_token_id", "image_token_index"), row.image)
    known = {setting: tokenizer.convert_tokens_to_ids(token) for setting, token in tokens.items()} | {
        "vocab_size": len(tokenizer) if row.sayable else len(tokenizer) - 1,
        "vocab_size_per_layer_input": len(tokenizer),
        "vocabulary_map": tokenizer.get_vocab(),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return made.from_dict(shrink(made(**row.asked).to_dict(), known=known, overrides=row.config))


def tiny_model(family: Family, *, seed: int = 0) -> PreTrainedModel:
    """The family's model with random weights drawn from the seed: float32, on the CPU, in evaluation mode."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(family.config, dtype=torch.float32)
    _wake(model)
    return model.eval()


def _wake(model: PreTrainedModel) -> None:
    """Draws what the class starts at zero: a projector or a gate of zeros would make pictures say nothing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.any() and not name.endswith("bias"):
                parameter.normal_(std=0.02)


def save(family: Family, folder: Path) -> None:
    """Model and processor, as ``from_pretrained`` of the library's auto classes reads them.

    Without torchvision the library loads no processor that could see videos; ``videos_stood_in`` helps a test there.
    """
    tiny_model(family).save_pretrained(folder)
    family.processor.save_pretrained(folder)


def text_with(family: Family, pictures: int) -> str:
    """One question about so many pictures, and its answer where the family knows turns, as its processor wants it."""
    if family.processor.chat_template is None:
        return ROWS[family.name].marker * pictures + "What is this?"
    question = [{"type": "image"}] * pictures + [{"type": "text", "text": "What is this?"}]
    talk = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
    ]
    return str(family.processor.apply_chat_template(talk))


def inputs_of(family: Family, texts: list[str], pictures: list[list[Image]] | None, **more: Any) -> BatchFeature:
    """What the family's processor makes of rows of text and the pictures of each, ready for its model."""
    row = ROWS[family.name]
    images: Any = pictures
    if row.flat and pictures is not None:
        images = [picture for of_one_row in pictures for picture in of_one_row]
    inputs = family.processor(text=texts, images=images, return_tensors="pt", **row.call, **more)
    if row.answers:
        inputs["labels"] = inputs["input_ids"]
    return inputs
