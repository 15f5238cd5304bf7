"""EfficientNet-Lite0 as a vision tower: a 7 x 7 grid of 1280 features, small enough for a CPU.

The network's code is the package ``efficientnet-lite-pytorch`` (extra ``quickstart``), its ImageNet weights another
package. There is no class for it in transformers.

Usage: ``AutoModel.from_pretrained(builtin.path("efficientnet-lite0"))`` after ``own_tower("efficientnet_lite0")``
"""

from __future__ import annotations

import importlib.util
from typing import Any

from PIL.Image import Resampling
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ViTImageProcessorPil,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from qlmm.compat.efficientnet_private import first_layer, without_classifier
from qlmm.core.errors import ModelError
from qlmm.model.contract import Tower

__all__ = ["TOWER", "EfficientNetLite0", "EfficientNetLite0Config"]

SIDE = 224
GREY = (0.5, 0.5, 0.5)


class EfficientNetLite0Config(PreTrainedConfig):
    """The network has one size; the numbers describe its tokens."""

    model_type = "efficientnet_lite0"

    hidden_size: int = 1280
    image_size: int = SIDE
    patch_size: int = 32
    num_channels: int = 3


class EfficientNetLite0(PreTrainedModel):
    """The network without its classifier, always in evaluation mode; its weights can be trained.

    With a few pictures a batch, the batch norms' running statistics would drift away from ImageNet's, and a picture's
    features would depend on its neighbours in the batch. For the same reason nothing is dropped at random.
    """

    config: EfficientNetLite0Config
    config_class = EfficientNetLite0Config
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: EfficientNetLite0Config) -> None:
        super().__init__(config)
        self.net = _network()
        self.post_init()
        self.train(self.training)

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Training mode for hooks and gradients alone."""
        super().train(mode)
        self.net.eval()
        return self

    def _init_weights(self, module: nn.Module) -> None:
        """The package initialises its own layers."""

    def get_input_embeddings(self) -> nn.Module:
        """The first convolution."""
        return first_layer(self.net)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Pictures (B, 3, 224, 224), scaled to -1 … 1 -> tokens (B, 49, 1280), row by row.

        The only hidden state is the tokens themselves: earlier stages have other widths. Options change nothing.
        """
        grid: Tensor = self.net.extract_features(pixel_values.to(self.dtype))
        tokens = grid.flatten(2).transpose(1, 2)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens, pooler_output=tokens.mean(1), hidden_states=(tokens,)
        )


def _network() -> Any:
    """The package's network without its classifier; raises M130 when the package is not installed."""
    if importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        message = "the vision tower efficientnet_lite0 needs the package efficientnet-lite-pytorch"
        help = 'pip install efficientnet-lite-pytorch==0.1.0, or install the extra: pip install "qlmm[quickstart]"'
        raise ModelError.one("M130", message, help=help)
    from efficientnet_lite_pytorch import EfficientNet

    return without_classifier(EfficientNet.from_name("efficientnet-lite0"))


def image_processor() -> BaseImageProcessor:
    """Pictures squashed to 224 x 224, bicubic, scaled to -1 … 1, as the weights were trained."""
    size = {"height": SIDE, "width": SIDE}
    return ViTImageProcessorPil(
        size=size, resample=Resampling.BICUBIC, image_mean=GREY, image_std=GREY, do_convert_rgb=True
    )


AutoConfig.register(EfficientNetLite0Config.model_type, EfficientNetLite0Config)
AutoModel.register(EfficientNetLite0Config, EfficientNetLite0)

TOWER = Tower(
    config=EfficientNetLite0Config,
    model=EfficientNetLite0,
    image_processor=image_processor,
    vision_layer=-1,
    source="EfficientNet, arXiv 1905.11946; Lite0 by TensorFlow's EfficientNet-Lite",
)
