"""Families that cut a picture into square tiles, each of a fixed number of places.

Usage: ``row = ROWS["internvl"]``
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.families.row import Row
from tests.families.shrink import PATCH, SIDE
from tests.families.templates import chatml, shipped, turns

SQUARE: Final = {"height": SIDE, "width": SIDE}
PLACES: Final = (SIDE // PATCH) ** 2
MERGED: Final = PLACES // 4
FOUR_TILES: Final = {"size": SQUARE, "max_patches": 4}
CHATML_ENDS: Final = ("<|endoftext|>", "<|im_end|>", "<|endoftext|>")

_NUMBERED: Final = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
IDEFICS3: Final = Row(
    image="<image>",
    special=("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *_NUMBERED),
    ends=("<|begin_of_text|>", "<end_of_utterance>", "<pad>"),
    pictures={"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}},
    processor={"image_seq_len": MERGED},
    template=shipped("idefics3"),
)
MINICPM: Final = Row(
    image="<|image_pad|>",
    named={
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    },
    ids={"video_token_id": "<|video_pad|>"},
    ends=CHATML_ENDS,
    pictures={"max_slice_nums": 4, "scale_resolution": SIDE, "patch_size": PATCH},
    config={
        "insert_layer_id": 0,
        "text_config.head_dim": 32,
        "text_config.rope_parameters.mrope_section": [2, 1, 1],
    },
    template=chatml("<|image_pad|>\\n"),
)
INTERNVL: Final = Row(
    image="<IMG_CONTEXT>",
    named={"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"},
    ends=CHATML_ENDS,
    pictures=FOUR_TILES,
    processor={"image_seq_length": MERGED},
    template=chatml("<IMG_CONTEXT>\\n"),
)
COHERE: Final = turns(
    begin="<BOS_TOKEN>",
    before="<|START_OF_TURN_TOKEN|><|{role}|>",
    after="<|END_OF_TURN_TOKEN|>",
    picture="<image>",
    answer="<|START_OF_TURN_TOKEN|><|assistant|>",
)

ROWS: Final[dict[str, Row]] = {
    "internvl": replace(INTERNVL, named={**INTERNVL.named, "video_token": "<video>"}),
    "qianfan_ocr": replace(INTERNVL, special=("<image>",), template=chatml("<image>\\n")),
    "idefics2": replace(
        IDEFICS3,
        ends=("<s>", "</s>", "<pad>"),
        pictures={"size": {"shortest_edge": SIDE, "longest_edge": 2 * SIDE}},
        config={"perceiver_config.resampler_n_latents": MERGED},
        template=turns(before="{role}: ", after="<end_of_utterance>\\n", picture="<image>", answer="assistant:"),
    ),
    "idefics3": IDEFICS3,
    "smolvlm": replace(
        IDEFICS3, ends=("<|im_start|>", "<end_of_utterance>", "<|im_end|>"), template=shipped("smolvlm")
    ),
    "granite_docling": replace(
        IDEFICS3,
        pictures=FOUR_TILES,
        config={"vision_config.scale_factor": 2},
        template=chatml("<image>"),
    ),
    "minicpmv4_6": MINICPM,
    "minicpmv4_7": MINICPM,
    "ovis2": Row(
        image="<IMG_ATOM>",
        special=("<image>", "<IMG_START>", "<IMG_END>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>"),
        ends=CHATML_ENDS,
        pictures=FOUR_TILES | {"crop_to_patches": True},
        processor={"image_seq_length": PLACES},
        config={"vision_config.vocab_size": 40},  # of visual words
        template=chatml("<image>\\n"),
    ),
    "aria": Row(
        image="<|img|>",
        named={"image_token": "<|img|>"},
        special=("<fim_prefix>", "<fim_suffix>"),
        # Its processor asks for pictures of 980 pixels whatever its image processor says.
        processor={"size_conversion": {980: 8}},
        config={
            "vision_config.image_size": 980,
            "vision_config.patch_size": 140,
            "projector_patch_to_query_dict": {49: 8},
            "max_value_projector_patch_to_query_dict": 8,
        },
        template=chatml("<fim_prefix><|img|><fim_suffix>"),
    ),
    "aya_vision": Row(
        image="<|IMG_PATCH|>",
        special=("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE", "TILE_GLOBAL", "<|START_OF_TURN_TOKEN|>"),
        ends=("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<PAD>"),
        pictures=FOUR_TILES,
        processor={"patch_size": PATCH, "img_size": SIDE, "downsample_factor": 2},
        template=COHERE,
    ),
}
