"""LLaVA's classes with any connector, any tower layer and any language model, known to transformers' Auto classes.

Only the way a picture becomes inputs of the language model differs from LLaVA. Placeholders are expanded by the
processor, as there, so a row's length is known before the model sees it. Module names are LLaVA's.

Usage: ``AssembledForConditionalGeneration.from_pretrained(folder)``
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    BaseImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaPreTrainedModel,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from qlmm.compat.transformers_models import MultiModalData
from qlmm.model.assembled.language import IMAGE_PLACEHOLDER
from qlmm.model.assembled.vision import final_tokens
from qlmm.model.contract import connector, own_tower

__all__ = [
    "AssembledConfig",
    "AssembledForConditionalGeneration",
    "AssembledModel",
    "AssembledProcessor",
    "ConnectorSpec",
    "build_connector",
]


class ConnectorSpec(BaseModel):
    """Everything needed to rebuild a connector and to feed it.

    Attributes:
        settings: defaults written out.
        vision_width: width V of the tokens it takes.
        text_width: width D of the language model's embeddings.
        vision_layer: hidden state it takes; None is the tower's final, normalised tokens.
        final_norm: norm to put on the tower's last tokens for that; None where the tower does it itself.
        skip_tokens: class and register tokens left out, counted from the first.
        tokens: tokens it makes of a picture.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    settings: dict[str, Any]
    vision_width: PositiveInt
    text_width: PositiveInt
    vision_layer: int | None
    final_norm: str | None
    skip_tokens: NonNegativeInt
    tokens: PositiveInt


def build_connector(spec: ConnectorSpec) -> nn.Module:
    """A new connector by its record, with random weights from PyTorch's global generator."""
    kind = connector(spec.kind)
    return kind.build(kind.read(spec.settings), spec.vision_width, spec.text_width)


class AssembledConfig(LlavaConfig):
    """LLaVA's configuration, with any connector and a head that may have a bias.

    ``vision_feature_layer`` and ``vision_feature_select_strategy`` are not read; the connector's record decides.
    """

    model_type = "qlmm_assembled"

    connector: dict[str, Any] | None = None
    lm_head_bias: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Make a tower of ours known before its part of the configuration is read."""
        if isinstance(self.vision_config, dict):
            own_tower(str(self.vision_config.get("model_type", "")))
        super().__post_init__(**kwargs)

    def spec(self) -> ConnectorSpec:
        """The connector's record, checked."""
        return ConnectorSpec.model_validate(self.connector)


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

    def forward(self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, **kwargs: Any) -> Any:
        """LLaVA's, which raises where pictures lack placeholders; this one also where placeholders lack pictures."""
        cache, made = kwargs.get("past_key_values"), kwargs.get("mm_encoder_outputs") or {}
        begins = cache is None or cache.get_seq_length() == 0
        if begins and input_ids is not None and pixel_values is None and made.get("image") is None:
            places = int((input_ids == self.config.image_token_id).sum())
            if places:
                raise ValueError(f"input_ids have {places} places for pictures, and there are no pixel_values")
        return super().forward(input_ids=input_ids, pixel_values=pixel_values, **kwargs)

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """The tower's output for pictures (B, 3, height, width), with B tensors (tokens, D) as ``pooler_output``.

        LLaVA's further arguments change nothing; the configuration decides.
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
        width, words = config.spec().text_width, config.text_config.vocab_size
        self.lm_head = nn.Linear(width, words, bias=config.lm_head_bias)
        # Input embeddings are called ``embed_tokens`` in Llama, ``wte`` in GPT-2.
        embeddings, modules = self.get_input_embeddings(), self.model.language_model.named_modules()
        name = next(name for name, module in modules if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{name}.weight"}
        self.post_init()


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


AutoConfig.register(AssembledConfig.model_type, AssembledConfig)
AutoModelForImageTextToText.register(AssembledConfig, AssembledForConditionalGeneration)
AutoProcessor.register(AssembledConfig, AssembledProcessor)
