"""Layers of the package efficientnet-lite-pytorch, all of which have private names.

Usage: ``network = without_classifier(EfficientNet.from_name("efficientnet-lite0"))``
"""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["first_layer", "without_classifier"]


def without_classifier(network: Any) -> Any:
    """The network, with nothing in its classifier's place.

    Read from efficientnet-lite-pytorch 0.1. Public instead: none; the package is pinned to this one release.
    """
    network._fc = nn.Identity()
    return network


def first_layer(network: nn.Module) -> nn.Module:
    """The first convolution.

    Read from efficientnet-lite-pytorch 0.1. Public instead: none; the package is pinned to this one release.
    """
    return network.get_submodule("_conv_stem")
