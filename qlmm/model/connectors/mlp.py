"""Linear, GELU, linear: LLaVA-1.5's projector, the very class that transformers uses for it.

Usage: ``base.connector: {kind: mlp}`` in a recipe
"""

from __future__ import annotations

from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from qlmm.compat.transformers_models import LlavaMultiModalProjector
from qlmm.model.contract import Connector, Settings

__all__ = ["CONNECTOR"]


def build(settings: Settings, vision_width: int, text_width: int) -> nn.Module:
    """The projector of transformers, (B, G, V) -> (B, G, D): both layers D wide, exact GELU, with biases."""
    # The class reads nothing of its configuration but the widths: any tower and language model with them will do.
    widths = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=vision_width, num_attention_heads=1),
        text_config=LlamaConfig(hidden_size=text_width, num_attention_heads=1),
        projector_hidden_act="gelu",
    )
    projector: nn.Module = LlavaMultiModalProjector(widths)
    return projector


CONNECTOR = Connector(
    settings=Settings,
    build=build,
    placeholders=lambda settings, grid_tokens: grid_tokens,
    takes="grid",
    vision_layer=-2,  # LLaVA-1.5 keeps LLaVA's choice, the grid before the last transformer layer
    fit="crop",
    plain_llava=True,
    source="LLaVA-1.5, arXiv 2310.03744",
    weights={
        # The authors' checkpoints, then those of transformers: before its version 4.52, since then.
        "model.mm_projector.0.": "linear_1.",
        "model.mm_projector.2.": "linear_2.",
        "multi_modal_projector.": "",
        "model.multi_modal_projector.": "",
    },
)
