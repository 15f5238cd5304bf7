"""Gemma: a SigLIP tower and a fixed number of places for a picture, or since Gemma 4 as many as its shape asks for.

Usage: ``row = ROWS["gemma3"]``
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.families.kin.tiles import MERGED, PLACES, SQUARE
from tests.families.row import Row
from tests.families.shrink import EXPERTS, PATCH, WIDTH
from tests.families.templates import shipped

GEMMA3: Final = Row(
    image="<image_soft_token>",
    named={"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    ids={"boi_token_index": "<start_of_image>", "eoi_token_index": "<end_of_image>"},
    special=("<start_of_turn>",),
    ends=("<bos>", "<end_of_turn>", "<pad>"),
    pictures={"size": SQUARE},
    processor={"image_seq_length": MERGED},
    config={"mm_tokens_per_image": MERGED},
    template=shipped("gemma3"),
)
GEMMA4: Final = Row(
    image="<|image|>",
    named={
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    },
    ids={
        "boi_token_id": "<|image>",
        "eoi_token_id": "<image|>",
        "boa_token_id": "<|audio>",
        "eoa_token_index": "<audio|>",
        "audio_token_id": "<|audio|>",
        "video_token_id": "<|video|>",
    },
    special=("<|turn>", "<|channel>", "<channel|>", "<|think|>"),
    ends=("<bos>", "<turn|>", "<pad>"),
    # The least that the class allows.
    pictures={"patch_size": PATCH, "max_soft_tokens": 70, "pooling_kernel_size": 3},
    asked={"vision_config": {"model_type": "gemma4_vision"}},
    config={"vision_config.position_embedding_size": 128},
    template=shipped("gemma4_v5"),
)
# The default configuration leaves the experts out, and the class cannot do without.
DIFFUSION: Final = {
    **GEMMA4.config,
    "text_config.num_experts": EXPERTS,
    "text_config.top_k_experts": 2,
    "text_config.moe_intermediate_size": WIDTH,
}

ROWS: Final[dict[str, Row]] = {
    "paligemma": Row(
        image="<image>",
        named={"image_token": "<image>"},
        ends=("<bos>", "<eos>", "<pad>"),
        pictures={"size": SQUARE, "image_seq_length": PLACES},
        config={"text_config.num_image_tokens": PLACES},
        marker="<image>",
        words_alone=False,
    ),
    "gemma3": GEMMA3,
    "t5gemma2": replace(
        GEMMA3,
        config={"encoder.mm_tokens_per_image": MERGED},
        template=None,
        marker="<start_of_image>",
        answers=True,
    ),
    "gemma4": GEMMA4,
    "diffusion_gemma": replace(GEMMA4, like="gemma4", config=DIFFUSION, template=shipped("diffusion_gemma")),
}
