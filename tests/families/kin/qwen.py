"""Qwen-VL: a picture is a grid of patches, as many as its own size asks for, and each keeps its row and column.

Usage: ``row = ROWS["qwen2_5_vl"]``
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from transformers import Qwen3_5Tokenizer

from tests.families.row import Row
from tests.families.shrink import PATCH, SIDE
from tests.families.templates import chatml, shipped

# At least one merged place, at most as many as a square picture of SIDE pixels has.
GRID: Final = {
    "patch_size": PATCH,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": (2 * PATCH) ** 2, "longest_edge": SIDE**2},
}
STILL: Final = GRID | {"temporal_patch_size": 1}
# Real checkpoints carry the sections of the rotary embedding; the default configuration leaves them out.
SECTIONS: Final = {"text_config.rope_parameters.mrope_section": [2, 3, 3]}
# One merged place a window, so that a picture has several.
WINDOWS: Final = {"vision_config.window_size": 2 * PATCH}
POSITIONS: Final = {"vision_config.num_position_embeddings": (SIDE // PATCH) ** 2}

QWEN2: Final = Row(
    image="<|image_pad|>",
    pictures=GRID,
    ids={
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    },
    special=("<|im_start|>",),
    ends=("<|endoftext|>", "<|im_end|>", "<|endoftext|>"),
    config=SECTIONS,
    template=shipped("qwen2_5_vl"),
)
QWEN3: Final = replace(QWEN2, config=SECTIONS | POSITIONS, template=shipped("qwen3_vl"))
QWEN35: Final = replace(
    QWEN2,
    tokenizer_class=Qwen3_5Tokenizer,
    # A quarter of a wider head is rotated, so there are fewer pairs to share out.
    config=POSITIONS | {"text_config.head_dim": 32, "text_config.rope_parameters.mrope_section": [2, 1, 1]},
)
# The default configuration leaves the indexer of its sparse attention empty.
INDEXER: Final = {
    "text_config.indexer_n_heads": 2,
    "text_config.indexer_kv_heads": 1,
    "text_config.indexer_head_dim": 16,
    "text_config.indexer_budget": 8,
    "text_config.indexer_compress_ratio": 4,
    "text_config.hc_count": 2,
    "text_config.hc_lowrank": 16,
}
OMNI: Final = replace(
    QWEN2,
    image="<|IMAGE|>",
    named={
        "image_token": "<|IMAGE|>",
        "audio_token": "<|AUDIO|>",
        "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    },
    ids={
        "audio_token_index": "<|AUDIO|>",
        "audio_token_id": "<|AUDIO|>",
        "video_token_index": "<|VIDEO|>",
        "video_token_id": "<|VIDEO|>",
        "vision_start_token_id": "<|vision_bos|>",
        "vision_end_token_id": "<|vision_eos|>",
        "audio_start_token_id": "<|audio_bos|>",
        "audio_end_token_id": "<|audio_eos|>",
    },
    # Real checkpoints carry these; the class does not declare them, yet its model reads them.
    asked={"vision_start_token_id": 0, "vision_end_token_id": 0},
    template=chatml("<|vision_bos|><|IMAGE|><|vision_eos|>"),
)

ROWS: Final[dict[str, Row]] = {
    "qwen2_vl": QWEN2,
    "qwen2_5_vl": replace(QWEN2, config=SECTIONS | WINDOWS),
    "qwen2_5_omni_thinker": replace(OMNI, like="qwen2_5_omni", config=SECTIONS | WINDOWS),
    "qwen3_vl": QWEN3,
    "qwen3_vl_moe": replace(QWEN3, like="qwen3_vl"),
    "qwen3_omni_moe_thinker": replace(OMNI, like="qwen3_omni_moe", config=SECTIONS | POSITIONS),
    "qwen3_5": replace(QWEN35, template=shipped("qwen3_5_nothink")),
    "qwen3_5_moe": replace(QWEN35, template=shipped("qwen3_6")),
    "qwen4_exp": replace(QWEN35, config=SECTIONS | POSITIONS | INDEXER, template=shipped("qwen3_8")),
}
