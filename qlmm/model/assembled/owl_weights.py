"""The vision tower of released mPLUG-Owl checkpoints (version 1) in the names and shapes of transformers.

The released vision tower is CLIP's ViT in another wrapper: a fused query-key-value layer, other names, a smaller
epsilon. So a ``CLIPVisionModel`` hosts it exactly.

Usage: ``tower.load_state_dict(vision_state(released, heads=16))``
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from transformers import CLIPVisionConfig

__all__ = ["VISION", "vision_config_from", "vision_state"]

VISION = "vision_model."
# The class default is CLIP's 1e-5; the released encoder was trained with 1e-6 (max difference 1.5e-5 otherwise).
VISION_EPS = 1e-6

_RENAMED = {
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.position_embedding": "embeddings.position_embedding.weight",
    "embeddings.patch_embed.weight": "embeddings.patch_embedding.weight",
    "embeddings.pre_layernorm.weight": "pre_layrnorm.weight",
    "embeddings.pre_layernorm.bias": "pre_layrnorm.bias",
    "input_layernorm": "layer_norm1",
    "self_attn.dense": "self_attn.out_proj",
    "post_attention_layernorm": "layer_norm2",
}
_WITHOUT_BATCH = {"embeddings.cls_token": 2, "embeddings.position_embedding": 1}


def vision_state(released: Mapping[str, Tensor], *, heads: int) -> dict[str, Tensor]:
    """The vision tower's weights under ``CLIPVisionModel``'s names.

    Args:
        released: a released model's state dictionary, or its vision part without the ``vision_model.`` prefix.
        heads: attention heads; the fused layer's rows are ordered head, then query, key, value, then width, and a
            reading in any other order gives silently wrong features.
    """
    state: dict[str, Tensor] = {}
    for name, weight in _tower(released).items():
        if ".query_key_value." in name:
            state |= _split_heads(name, weight, heads)
        else:
            state[_clip_name(name)] = weight.flatten(0, _WITHOUT_BATCH[name]) if name in _WITHOUT_BATCH else weight
    return state


def _tower(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower's weights without their prefix; a dictionary that holds only them may lack it."""
    inside = {name.removeprefix(VISION): weight for name, weight in released.items() if name.startswith(VISION)}
    return inside or dict(released)


def _clip_name(name: str) -> str:
    if name in _RENAMED:
        return _RENAMED[name]
    for old, new in _RENAMED.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name


def _split_heads(name: str, fused: Tensor, heads: int) -> dict[str, Tensor]:
    """A fused weight (heads * 3 * d, V) or bias (heads * 3 * d) -> one each for query, key and value."""
    rows, *rest = fused.shape
    parts = fused.reshape(heads, 3, rows // heads // 3, *rest).unbind(1)
    stem, kind = name.split("query_key_value.")
    return {f"{stem}{letter}_proj.{kind}": part.flatten(0, 1) for letter, part in zip("qkv", parts, strict=True)}


def vision_config_from(released: Mapping[str, Tensor], *, heads: int, eps: float = VISION_EPS) -> CLIPVisionConfig:
    """The configuration of the ``CLIPVisionModel`` that hosts a released vision tower.

    Args:
        released: as ``vision_state`` takes it; sizes are read from the weights.
        heads: attention heads, which leave no trace in the weights.
        eps: epsilon of the norms.
    """
    vision = _tower(released)
    width, channels, patch, _ = vision["embeddings.patch_embed.weight"].shape
    grid = round((vision["embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=vision["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=1 + max(int(name.split(".")[2]) for name in vision if name.startswith("encoder.layers.")),
        num_attention_heads=heads,
        num_channels=channels,
        image_size=grid * patch,
        patch_size=patch,
        layer_norm_eps=eps,
        hidden_act="quick_gelu",
    )
