"""The processor of an assembled model: LLaVA's where its token arithmetic is right, else one with a fixed count.

Usage: ``processor = assembled_processor(image_processor, tokenizer, config=config, facts=facts)``
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import BaseImageProcessor, LlavaConfig, LlavaProcessor, PreTrainedTokenizerBase

from qlmm.compat.transformers_models import MultiModalData
from qlmm.model.assembled.language import IMAGE_PLACEHOLDER
from qlmm.model.assembled.model import AssembledConfig
from qlmm.model.assembled.vision import VisionFacts

__all__ = ["AssembledProcessor", "assembled_processor", "load_processor"]


class AssembledProcessor(LlavaProcessor):
    """LLaVA's processor for connectors whose token count does not follow from the picture's size."""

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        image_token: str = IMAGE_PLACEHOLDER,
        tokens_per_image: int = 1,
    ) -> None:
        self.tokens_per_image = tokens_per_image
        super().__init__(image_processor, tokenizer, chat_template=chat_template, image_token=image_token)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The placeholders of one picture."""
        return str(self.image_token) * self.tokens_per_image

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs: Any) -> MultiModalData:
        """Tokens per picture, for callers that plan without preparing pictures."""
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.tokens_per_image] * count, num_image_patches=[1] * count)


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


def load_processor(folder: Path) -> LlavaProcessor:
    """Read back a processor that either class wrote with ``save_pretrained``; nothing is run from the folder."""
    written = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    kinds: dict[str, type[LlavaProcessor]] = {kind.__name__: kind for kind in (LlavaProcessor, AssembledProcessor)}
    return kinds[written["processor_class"]].from_pretrained(folder, trust_remote_code=False)
