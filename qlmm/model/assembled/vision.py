"""What a vision tower gives a connector, found by running it once without weights.

How many tokens a tower makes, which of them are a grid of patches and which are class or register tokens, is not
written in its configuration in one way. So the tower is built on the meta device and run on a picture's shape.

Usage: ``size = picture_size(image_processor); facts = vision_facts(tower.config, size)``
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel, BaseImageProcessor, PreTrainedConfig

from qlmm.compat.transformers_models import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from qlmm.core.errors import ModelError, QlmmError
from qlmm.model.contract import Connector, Fit, own_tower

__all__ = ["VisionFacts", "choose_layer", "final_tokens", "picture_size", "prepared", "vision_facts", "vision_half"]

# Towers whose `last_hidden_state` is the last block's output as it is: they norm the class token only, for the pooled
# output. Every other tower of transformers (SigLIP, ViT, DINOv2, DeiT, …) returns its tokens already normalised.
# mPLUG-Owl applies CLIP's to all tokens (difference 0.0 with released weights). MLCD is CLIP with rotary positions, the
# others are CLIP's code with other weights.
_NORM_LEFT_TO_DO = {
    f"{kind}_vision_model": "post_layernorm" for kind in ("clip", "metaclip_2", "chinese_clip", "altclip", "mlcd")
}

# Two shapes that no processor leaves alike by accident.
_PROBES = ((97, 61), (53, 120))
_HELP = "CLIP, SigLIP (not NaFlex), DINOv2 and ViT checkpoints, and towers in qlmm/model/towers, can be used"


@dataclass(frozen=True, slots=True)
class VisionFacts:
    """What a tower makes of one picture.

    Attributes:
        width: width V of its tokens.
        grid: rows and columns of patch tokens.
        extra_tokens: class and register tokens, which come before the grid.
        patch_size: side of a patch, in pixels.
        states: hidden states that can be chosen by number, the embeddings included.
        vision_layer: the inner layer that a tower of ours asks for; None leaves it to the connector.
        final_norm: norm to apply for final, normalised tokens; None where the tower does it itself.
    """

    width: int
    grid: tuple[int, int]
    extra_tokens: int
    patch_size: int
    states: int
    vision_layer: int | None
    final_norm: str | None

    @property
    def grid_tokens(self) -> int:
        """Patch tokens of a picture."""
        return self.grid[0] * self.grid[1]


def vision_half(config: PreTrainedConfig, source: str) -> PreTrainedConfig:
    """The vision tower's part of a configuration with one or two towers; raises M110 for a language model's."""
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and "vision_config" not in config.sub_configs:
        message = f"{source} is a language model ({config.model_type})"
        raise ModelError.one("M110", message, help="are base.vision and base.language swapped?", key="base.vision")
    return config.vision_config if "vision_config" in config.sub_configs else config


def picture_size(image_processor: BaseImageProcessor) -> tuple[int, int]:
    """Height and width in pixels of every prepared picture, found by trying; raises M111 when they vary."""
    blank = [Image.new("RGB", size) for size in _PROBES]
    shapes = {tuple(torch.as_tensor(picture).shape) for picture in image_processor(blank)["pixel_values"]}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 3:
        message = f"{type(image_processor).__name__} does not bring every picture to one size"
        raise ModelError.one("M111", message, help=_HELP, key="base.vision")
    return shape[1], shape[2]


def prepared(image_processor: BaseImageProcessor, fit: Fit) -> BaseImageProcessor:
    """A copy of a tower's image processor for use in an assembled model.

    ``squash`` resizes without keeping the shape, so that no margin is cut off (mPLUG-Owl). ``crop_size`` is always the
    final size, also where nothing is cropped: ``LlavaProcessor`` counts tokens by it.
    """
    height, width = picture_size(image_processor)
    size = {"height": height, "width": width}
    settings = image_processor.to_dict()
    changes: dict[str, Any] = {"crop_size": size}
    if fit == "squash":
        changes |= {"do_resize": True, "size": size, "do_center_crop": False}
    elif not settings.get("crop_size"):
        changes |= {"do_center_crop": False}
    return type(image_processor).from_dict(settings | changes)


def vision_facts(config: PreTrainedConfig, picture: tuple[int, int]) -> VisionFacts:
    """What a tower makes of a picture of this height and width; raises M112 without one token per patch."""
    last, states = _run_without_weights(config, picture)
    patch = _patch_size(config)
    grid = (picture[0] // patch, picture[1] // patch)
    extra = last.shape[1] - grid[0] * grid[1] if last.dim() == 3 else -1
    if extra < 0 or any(state.shape != last.shape for state in states):
        raise _not_a_grid(config, "does not give one token per patch")
    own = own_tower(config.model_type)
    return VisionFacts(
        width=last.shape[2],
        grid=grid,
        extra_tokens=extra,
        patch_size=patch,
        states=len(states),
        vision_layer=own.vision_layer if own is not None else None,
        final_norm=_NORM_LEFT_TO_DO.get(config.model_type),
    )


def _run_without_weights(config: PreTrainedConfig, picture: tuple[int, int]) -> tuple[Tensor, tuple[Tensor, ...]]:
    try:
        # Building a model writes its attention kind into the configuration, hence the copy.
        with torch.device("meta"), torch.no_grad():
            tower = AutoModel.from_config(copy.deepcopy(config))
            output = tower(torch.empty(1, 3, *picture), output_hidden_states=True, return_dict=True)
        return output.last_hidden_state, tuple(output.hidden_states)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise _not_a_grid(config, f"cannot be run on a picture alone ({error})") from error


def _patch_size(config: PreTrainedConfig) -> int:
    stated = config.to_dict().get("patch_size")
    sides = set(stated) if isinstance(stated, list | tuple) else {stated}
    side = sides.pop()
    if sides or not isinstance(side, int):
        raise _not_a_grid(config, f"has no square patches (patch_size: {stated})")
    return side


def _not_a_grid(config: PreTrainedConfig, why: str) -> QlmmError:
    return ModelError.one("M112", f"a tower of kind {config.model_type} {why}", help=_HELP, key="base.vision")


def choose_layer(asked: int | None, connector: Connector[Any], facts: VisionFacts) -> int | None:
    """Which hidden state feeds the connector: the recipe's choice, else the tower's, else the connector's.

    A tower's own choice only replaces a number; a connector that takes final, normalised tokens keeps to them.
    Raises M113 when the tower has no such hidden state, or it is the embeddings (0), which are not features.
    """
    layer = asked if asked is not None else connector.vision_layer
    if asked is None and layer is not None and facts.vision_layer is not None:
        layer = facts.vision_layer
    # The first hidden state of several is the embeddings; a tower of one state names its only one -1.
    embeddings = layer == 0 or (facts.states > 1 and layer == -facts.states)
    if layer is not None and (embeddings or not -facts.states <= layer < facts.states):
        help = f"there are 1 to {facts.states - 1}, or, counted from the end, -1 to -{facts.states - 1}"
        raise ModelError.one("M113", f"the tower has no hidden state {layer}", help=help, key="base.vision_layer")
    return layer


def final_tokens(tower: nn.Module, last_hidden_state: Tensor, norm: str | None) -> Tensor:
    """The tower's final, normalised tokens (B, T, V), with the norm that some towers leave to the user."""
    if norm is None:
        return last_hidden_state
    normalised: Tensor = tower.get_submodule(norm)(last_hidden_state)
    return normalised
