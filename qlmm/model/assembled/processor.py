"""The processor of an assembled model: LLaVA's where its token arithmetic is right, else one with a fixed count.

Usage: ``processor = assembled_processor(image_processor, tokenizer, config=config, facts=facts)``
"""

from __future__ import annotations

from transformers import BaseImageProcessor, LlavaConfig, LlavaProcessor, PreTrainedTokenizerBase

from qlmm.model.assembled.model import AssembledConfig, AssembledProcessor
from qlmm.model.assembled.vision import VisionFacts

__all__ = ["assembled_processor"]


def assembled_processor(
    image_processor: BaseImageProcessor, tokenizer: PreTrainedTokenizerBase, *, config: LlavaConfig, facts: VisionFacts
) -> LlavaProcessor:
    """The processor for a configuration made by ``assembled_config``, with the tokenizer's own chat template.

    A stock ``LlavaProcessor`` for a plain LLaVA model, so that exports need nothing of ours; else ours. It takes the
    tower's image processor after ``prepared`` and the language model's tokenizer after ``add_image_token``.
    """
    template = tokenizer.chat_template
    if isinstance(config, AssembledConfig):
        return AssembledProcessor(image_processor, tokenizer, template, tokens_per_image=config.spec().tokens)
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=facts.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=facts.extra_tokens,
        chat_template=template,
    )
