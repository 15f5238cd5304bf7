"""LLaVA's model classes with any connector, any tower layer and any language model.

Only the way a picture becomes inputs of the language model differs from LLaVA. Placeholders are expanded by the
processor, as there, so a row's length is known before the model sees it. Module names are LLaVA's.

Usage: ``AssembledForConditionalGeneration.from_pretrained(folder)``
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaPreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from qlmm.model.assembled.config import AssembledConfig, ConnectorSpec
from qlmm.model.assembled.vision import final_tokens
from qlmm.model.contract import connector

__all__ = ["AssembledForConditionalGeneration", "AssembledModel", "build_connector"]


def build_connector(spec: ConnectorSpec) -> nn.Module:
    """A new connector by its record, with random weights from PyTorch's global generator."""
    kind = connector(spec.kind)
    return kind.build(kind.read(spec.settings), spec.vision_width, spec.text_width)


class AssembledModel(LlavaModel):
    """Tower, connector and language model, without the head."""

    config: AssembledConfig
    config_class = AssembledConfig

    def __init__(self, config: AssembledConfig) -> None:
        # LLaVA's own constructor would build its projector; the grandparent's does the rest.
        LlavaPreTrainedModel.__init__(self, config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = build_connector(config.spec())
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """What the language model gets for each picture.

        Args:
            pixel_values: (B, 3, height, width), one per picture, in the order of their placeholders.
            **kwargs: LLaVA's own arguments, which the configuration decides here.

        Returns:
            The tower's output, with B tensors (tokens, D) as ``pooler_output``.
        """
        spec = self.config.spec()
        layer = spec.vision_layer
        outputs = self.vision_tower(
            pixel_values, output_hidden_states=False if layer is None else layer, return_dict=True
        )
        if layer is None:
            tokens = final_tokens(self.vision_tower, outputs.last_hidden_state, spec.final_norm)
        else:
            tokens = outputs.hidden_states[layer]
        # A frozen tower is 16-bit while a trained connector is fp32; without autocast their product would not exist.
        dtype = next(self.multi_modal_projector.parameters()).dtype
        outputs.pooler_output = list(self.multi_modal_projector(tokens[:, spec.skip_tokens :].to(dtype)))
        return outputs


class AssembledForConditionalGeneration(LlavaForConditionalGeneration):
    """An assembled model with the language model's head."""

    config: AssembledConfig
    config_class = AssembledConfig

    def __init__(self, config: AssembledConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = AssembledModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(config.spec().text_width, text.vocab_size, bias=config.lm_head_bias)
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{self._embedding_name()}.weight"}
        self.post_init()

    def _embedding_name(self) -> str:
        """The language model's own name for its input embeddings: Llama says ``embed_tokens``, GPT-2 ``wte``."""
        language: nn.Module = self.model.language_model
        embeddings = self.get_input_embeddings()
        names: list[str] = [name for name, module in language.named_modules() if module is embeddings]
        return names[0]

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See ``AssembledModel.get_image_features``."""
        return self.model.get_image_features(pixel_values, **kwargs)


AutoModelForImageTextToText.register(AssembledConfig, AssembledForConditionalGeneration)
