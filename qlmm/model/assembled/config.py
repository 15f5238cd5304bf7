"""The configuration of a model put together from a tower, a connector and a language model.

Usage: ``AssembledConfig(vision_config=…, text_config=…, connector=spec.model_dump())``
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt
from transformers import AutoConfig, LlavaConfig

from qlmm.model.contract import own_tower

__all__ = ["AssembledConfig", "ConnectorSpec"]


class ConnectorSpec(BaseModel):
    """Everything needed to rebuild a connector and to feed it.

    Attributes:
        kind: its name.
        settings: its settings, defaults written out.
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

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules of the assembled model that hold the connector's weights; the name is that of LLaVA's class."""
        return ("model.multi_modal_projector",)


class AssembledConfig(LlavaConfig):
    """LLaVA's configuration and what its class cannot say: the connector, and a head with a bias.

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


AutoConfig.register(AssembledConfig.model_type, AssembledConfig)
