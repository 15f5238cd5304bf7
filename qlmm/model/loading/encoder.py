"""The encoder of a base: its processor under the recipe's pixel budget, for answers in line or in a decoder.

Usage: ``encoder, pictures = make_encoder(recipe.base, recipe.data, load_processor(recipe.base))``
"""

from __future__ import annotations

from transformers import ProcessorMixin

from qlmm.data.encoding.encoder import Encoder
from qlmm.model.image_budget.budget import Budget, apply
from qlmm.model.loading.base import answers_in_decoder
from qlmm.recipe.schema import BaseSection, DataSection

__all__ = ["make_encoder"]


def make_encoder(base: BaseSection, data: DataSection, processor: ProcessorMixin) -> tuple[Encoder, tuple[str, ...]]:
    """An encoder, and what the pixel budget set in the processor, in words.

    Raises:
        ModelError: D030 and following when the processor cannot be used for training, M060 and following when it
            cannot follow the budget.
    """
    pictures = apply(processor, Budget.of(data))
    encoder = Encoder.make(
        processor, max_length=data.max_length, overlong=data.overlong, decoder=answers_in_decoder(base)
    )
    return encoder, pictures
