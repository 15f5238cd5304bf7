"""One linear map from the tower's patches to the language model, as in LLaVA v1, FROMAGe and MiniGPT-4.

Stock LLaVA code expects two layers with an activation between them. A merged export is exact: ``linear_1`` is this
map, the activation is ``linear`` (the identity), ``linear_2`` has the identity matrix and a zero bias.

Usage: ``base.connector: {kind: linear}`` in a recipe
"""

from __future__ import annotations

from torch import nn

from qlmm.model.contract import Connector, Settings

__all__ = ["CONNECTOR"]


def build(settings: Settings, vision_width: int, text_width: int) -> nn.Module:
    """A linear map (B, G, V) -> (B, G, D) with PyTorch's own initialisation, which LLaVA v1 used."""
    return nn.Linear(vision_width, text_width)


CONNECTOR = Connector(
    settings=Settings,
    build=build,
    placeholders=lambda settings, grid_tokens: grid_tokens,
    takes="grid",
    vision_layer=-2,  # LLaVA, arXiv 2304.08485, section 4.1: the grid before the last transformer layer
    fit="crop",
    plain_llava=True,
    source="LLaVA, arXiv 2304.08485",
    weights={"model.mm_projector.": ""},
)
