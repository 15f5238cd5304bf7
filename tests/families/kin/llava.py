"""LLaVA and its line: a vision tower, a projector, a language model; one square picture, or tiles beside it.

Usage: ``row = ROWS["llava"]``
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.families.kin.tiles import CHATML_ENDS, PLACES, SQUARE
from tests.families.row import Row
from tests.families.shrink import PATCH, SIDE
from tests.families.templates import chatml, shipped, turns

CROP: Final = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}
GRIDS: Final = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
MORE_GRIDS: Final = [[SIDE, SIDE], *GRIDS]

LLAVA: Final = Row(
    image="<image>",
    pictures=CROP,
    processor={"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    template=turns(before="{role}: ", after="\\n", picture="<image>\\n", answer="assistant:"),
)
NEXT: Final = replace(LLAVA, pictures=CROP | {"image_grid_pinpoints": GRIDS}, config={"image_grid_pinpoints": GRIDS})
DEEPSEEK: Final = Row(
    image="<image_placeholder>",
    named={"image_token": "<image_placeholder>"},
    ends=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"),
    pictures={"size": SQUARE},
    processor={"num_image_tokens": PLACES},
    template=turns(
        begin="<｜begin▁of▁sentence｜>",
        before="<|{role}|>: ",
        after="\\n\\n",
        picture="<image_placeholder>",
        answer="<|assistant|>:",
    ),
)
# Janus also draws pictures; that half is as small as its class allows.
PAINTER: Final = {
    "vq_config.num_embeddings": 32,
    "vq_config.latent_channels": 32,
    "vq_config.base_channels": 32,
    "vq_config.channel_multiplier": [1, 1],
    "vq_config.num_res_blocks": 1,
    "vq_config.num_patches": 4,
}

ROWS: Final[dict[str, Row]] = {
    "llava": LLAVA,
    "vipllava": replace(LLAVA, config={"vision_feature_layer": [-2, -1]}),
    "video_llava": replace(LLAVA, ids={"video_token_index": "<video>"}),
    "llava_next": replace(NEXT, template=shipped("llava_next")),
    "llava_next_video": replace(NEXT, ids={"video_token_index": "<video>"}),
    "granite4_vision": replace(
        NEXT,
        processor={**NEXT.processor, "downsample_rate": "1/2"},
        # The default configuration has no rate, and names layers that a small model lacks.
        config={
            **NEXT.config,
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-1, 0]],
            "spatial_target_layers": [0, 0, 1, 1],
        },
    ),
    "llava_onevision": Row(
        image="<image>",
        ids={"video_token_index": "<video>"},
        ends=CHATML_ENDS,
        pictures={"size": SQUARE, "image_grid_pinpoints": MORE_GRIDS},
        processor={"num_image_tokens": PLACES, "vision_feature_select_strategy": "full"},
        config={"image_grid_pinpoints": MORE_GRIDS},
        template=chatml("<image>\\n"),
    ),
    "deepseek_vl": DEEPSEEK,
    "deepseek_vl_hybrid": replace(
        DEEPSEEK,
        pictures={"size": SQUARE, "high_res_size": {"height": 4 * SIDE, "width": 4 * SIDE}},
        config={"high_res_vision_config.image_size": 4 * SIDE, "high_res_vision_config.window_size": 4},
    ),
    "janus": replace(
        DEEPSEEK,
        named={"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"},
        config=PAINTER | {"vision_config.num_image_tokens": PLACES},
    ),
}
