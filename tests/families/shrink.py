"""Any configuration made tiny: one rule for every name of a size, and lists of layers cut to one of each kind.

The library's default configurations are billions of parameters wide. What a test needs of them is the shape: every
kind of layer, every sub-model, nothing wide.

Usage: ``small = shrink(config.to_dict(), known={"vocab_size": len(tokenizer)}, overrides={})``
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final

Settings = dict[str, Any]

SIDE: Final = 32  # pixels of a square picture, where the model has one size
PATCH: Final = 8
WIDTH: Final = 64
HEADS: Final = 4
PER_HEAD: Final = WIDTH // HEADS
EXPERTS: Final = 4

_TO_WIDTH = """hidden_size d_model embed_dim out_hidden_size intermediate_size ffn_dim mlp_dim d_ff encoder_ffn_dim
    decoder_ffn_dim projection_dim encoder_hidden_size text_hidden_size word_embed_proj_dim image_text_hidden_size
    moe_intermediate_size shared_expert_intermediate_size projector_hidden_size output_dim projector_input_dim
    projector_output_dim vision_hidden_size patch_embed_hidden_size shared_intermediate_size
    projection_intermediate_size projection_hidden_size decoder_hidden_size intermediate_size_mlp output_channels
    downsample_hidden_size dense_intermediate_size shared_experts_intermediate_size moe_hidden_size merged_hidden_size
    base_channels image_token_embed_dim share_expert_dim moe_shared_expert_intermediate_size adapter_in_dim
    adapter_out_dim adapter_input_size"""
_TO_HEADS = """num_attention_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads
    num_sliding_attention_heads swa_num_attention_heads linear_num_value_heads linear_num_heads index_n_heads
    resampler_n_heads"""
_TO_PER_HEAD = """head_dim d_kv swa_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim index_head_dim
    resampler_head_dim v_head_dim qk_head_dim query_pre_attn_scalar kv_lora_rank q_lora_rank
    hidden_size_per_layer_input laurel_rank"""
_TO_TWO = """num_key_value_heads swa_num_key_value_heads linear_num_key_heads num_experts_per_tok top_k_experts moe_k
    moe_topk"""
_TO_EXPERTS = "num_experts num_local_experts n_routed_experts moe_num_experts"
_COUNTS_OF_LAYERS = """num_hidden_layers depth layers num_layers encoder_layers decoder_layers n_layers
    num_decoder_layers num_global_layers resampler_depth"""

SIZES: Final[dict[str, float]] = {
    **dict.fromkeys(_TO_WIDTH.split(), WIDTH),
    **dict.fromkeys(_TO_HEADS.split(), HEADS),
    **dict.fromkeys(_TO_PER_HEAD.split(), PER_HEAD),
    **dict.fromkeys(_TO_TWO.split(), 2),
    **dict.fromkeys(_TO_EXPERTS.split(), EXPERTS),
    "image_size": SIDE,
    "patch_size": PATCH,
    "qk_nope_head_dim": PER_HEAD // 2,
    "qk_rope_head_dim": PER_HEAD // 2,
    "sliding_window": 4096,  # a window that answers see the picture through
    "max_position_embeddings": 1024,
    "index_topk": 32,
    "initializer_range": 0.02,
}
LAYERS: Final = frozenset(_COUNTS_OF_LAYERS.split())
# Which layers are of a special kind, by number: the last of the layers kept is.
NUMBERS_OF_LAYERS: Final = frozenset(
    {"fullatt_block_indexes", "global_attn_indexes", "cross_attention_layers", "intermediate_layers_indices"}
)


def shrink(settings: Settings, *, known: Mapping[str, Any], overrides: Mapping[str, Any]) -> Settings:
    """The settings of a configuration and of all it holds, made tiny.

    Args:
        settings: what ``config.to_dict()`` gave.
        known: settings that the tokenizer decides, wherever they appear: the vocabulary's size, the ids of tokens.
        overrides: what the general rule gets wrong: dotted name of a setting, and its value.

    Returns:
        Settings to be given to ``from_dict`` of the same class.
    """
    small = _shrunk(settings, known)
    for name, value in overrides.items():
        *folders, last = name.split(".")
        place = small
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = deepcopy(value)  # a configuration writes into what it is given
    return small


def _shrunk(settings: Settings, known: Mapping[str, Any]) -> Settings:
    return {name: _value(name, value, known) for name, value in _cut_layers(settings).items()}


def _value(name: str, value: Any, known: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return _shrunk(value, known) if "model_type" in value else value
    if name in known:
        return known[name]
    if value is None or name not in SIZES or isinstance(value, bool):
        return value
    return [SIZES[name]] * len(value) if isinstance(value, (list, tuple)) else SIZES[name]


def _cut_layers(settings: Settings) -> Settings:
    """Two layers, or as many as show each kind; every list that has one entry a layer is cut alike."""
    counts = {name: settings[name] for name in LAYERS & settings.keys() if isinstance(settings[name], int)}
    cut = dict(settings)
    for name, count in counts.items():
        lists = {key: value for key, value in settings.items() if _is_per_layer(value, count)}
        kept = _one_of_each(lists, count)
        cut |= {key: [value[layer] for layer in kept] for key, value in lists.items()}
        cut[name] = len(kept)
        cut |= {key: [len(kept) - 1] for key in NUMBERS_OF_LAYERS & settings.keys()}
        if "per_layer_config" in settings:
            cut["per_layer_config"] = _renumbered(settings["per_layer_config"], kept)
    if "deepstack_visual_indexes" in settings:
        cut["deepstack_visual_indexes"] = [0]  # what is added at the last decoder layer is read by nothing
    return cut


def _renumbered(exceptions: Mapping[str, Settings], kept: list[int]) -> dict[int, Settings]:
    """What some layers have of their own, under the numbers that the kept layers now have."""
    known = {int(layer): settings for layer, settings in exceptions.items()}
    return {kept.index(layer): _shrunk(known[layer], {}) for layer in kept if layer in known}


def _is_per_layer(value: Any, count: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == count and not isinstance(value[0], (list, dict))


def _one_of_each(lists: Mapping[str, Any], count: int) -> list[int]:
    """Numbers of the layers to keep: the first of each kind in each list, two at least."""
    first = {list(values).index(kind) for values in lists.values() for kind in set(values)} or {0}
    if len(first) < 2:
        first |= {min(first) + 1}
    return sorted(layer for layer in first if layer < count)
