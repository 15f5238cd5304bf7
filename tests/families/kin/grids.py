"""Others whose picture is a grid of patches, as many as its own size asks for.

Usage: ``row = ROWS["paddleocr_vl"]``
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.families.kin.qwen import GRID, POSITIONS, QWEN2, QWEN3, STILL, WINDOWS
from tests.families.row import Row
from tests.families.shrink import PATCH, PER_HEAD, SIDE, WIDTH
from tests.families.templates import chatml, turns

ROPE: Final = {"rope_type": "default", "rope_theta": 10000.0}

_OTHERS: Final[dict[str, Row]] = {
    "cosmos3_omni": replace(QWEN3, like="qwen3_vl"),
    "cosmos3_edge": replace(
        QWEN3,
        pictures=STILL,
        config={**QWEN3.config, "vision_config.num_patches": (SIDE // PATCH) ** 2, "projector_hidden_size": WIDTH},
        # Its processor says which places are pictures only when asked, and its model refuses pictures without.
        call={"return_mm_token_type_ids": True},
    ),
    "hyperclovax_vision_v2": replace(QWEN2, config=WINDOWS, template=chatml("<|image_pad|>")),
    "exaone4_5": replace(
        QWEN2,
        special=("[|user|]", "[|assistant|]", "<vision>", "</vision>"),
        ends=("[BOS]", "[|endofturn|]", "[PAD]"),
        config=WINDOWS,
        template=turns(
            before="[|{role}|]",
            after="[|endofturn|]\\n",
            picture="<vision><|image_pad|></vision>",
            answer="[|assistant|]",
        ),
    ),
    "dots3_note": replace(
        QWEN2,
        image="<|imgpad|>",
        ids={"video_token_id": "<|video_pad|>", "audio_token_id": "<|audio_comp_pad|>"},
        special=("<|im_start|>", "<|img|>", "<|endofimg|>"),
        pictures=STILL,
        # Its latent attention has as many keys as queries; the layers with a window have fewer of both.
        config={
            "text_config.num_key_value_heads": 4,
            "text_config.per_layer_config": {2: {"num_attention_heads": 2, "num_key_value_heads": 2}},
        },
        template=chatml("<|img|><|imgpad|><|endofimg|>"),
    ),
    "lfm3_vl": replace(QWEN2, config={}, template=chatml("<|vision_start|><|image_pad|><|vision_end|>")),
    "cohere_compass": replace(
        QWEN2,
        image="<|IMAGE_PAD|>",
        ids={
            "video_token_id": "<|VIDEO_PAD|>",
            "vision_start_token_id": "<|VISION_START|>",
            "vision_end_token_id": "<|VISION_END|>",
        },
        # The default configuration has no rotary embedding for the only kind of layer it has.
        config=POSITIONS | {"text_config.rope_parameters": {"full_attention": ROPE}},
        template=chatml("<|VISION_START|><|IMAGE_PAD|><|VISION_END|>"),
    ),
    "video_llama_3": replace(QWEN2, pictures=STILL, config={}, template=chatml("<|image_pad|>")),
    "paddleocr_vl": replace(
        QWEN2,
        image="<|IMAGE_PLACEHOLDER|>",
        named={"image_token": "<|IMAGE_PLACEHOLDER|>"},
        special=("<|im_start|>", "<|IMAGE_START|>", "<|IMAGE_END|>"),
        pictures=STILL,
        template=chatml("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
    ),
    "ernie4_5_vl_moe": Row(
        image="<|IMAGE_PLACEHOLDER|>",
        named={
            "image_token": "<|IMAGE_PLACEHOLDER|>",
            "image_start_token": "<|IMAGE_START|>",
            "image_end_token": "<|IMAGE_END|>",
            "video_token": "<|VIDEO_PLACEHOLDER|>",
            "video_start_token": "<|VIDEO_START|>",
            "video_end_token": "<|VIDEO_END|>",
        },
        ids={
            "video_token_id": "<|VIDEO_PLACEHOLDER|>",
            "image_start_token_id": "<|IMAGE_START|>",
            "image_end_token_id": "<|IMAGE_END|>",
            "video_start_token_id": "<|VIDEO_START|>",
            "video_end_token_id": "<|VIDEO_END|>",
        },
        pictures=STILL,
        videos={"draw_on_frames": False},  # needs a font
        config={"text_config.rope_parameters.mrope_section": [3, 3, 2]},
        template=turns(
            begin="<s>",
            before="{role}: ",
            after="\\n",
            picture="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
            answer="assistant: ",
        ),
    ),
    "hunyuan_vl": Row(
        image="<img>",
        named={"image_token": "<img>", "image_start_token": "<im_start>", "image_end_token": "<im_end>"},
        ids={"im_start_id": "<im_start>", "im_end_id": "<im_end>", "im_newline_id": "<im_newline>"},
        special=("<|user|>", "<|assistant|>"),
        pictures=STILL,
        config={
            "vision_config.max_image_size": 2 * SIDE,
            "text_config.head_dim": PER_HEAD,
            "text_config.rope_parameters": ROPE | {"mrope_section": [2, 2, 2, 2]},
        },
        template=turns(before="", after="<|{role}|>", picture="<im_start><img><im_end>", answer=""),
    ),
    "lighton_ocr": replace(
        QWEN2,
        named={
            "image_token": "<|image_pad|>",
            "image_break_token": "<|vision_pad|>",
            "image_end_token": "<|vision_end|>",
        },
        ids={},
        pictures={"patch_size": {"height": 2 * PATCH, "width": 2 * PATCH}, "size": {"longest_edge": 2 * SIDE}},
        processor={"patch_size": PATCH, "spatial_merge_size": 2},
        config={"vision_config.image_size": 2 * SIDE},
        template=chatml("<|image_pad|>"),
    ),
}

_GLM: Final = Row(
    image="<|image|>",
    # The frames of one picture count as pixels here.
    pictures=GRID | {"size": {"shortest_edge": 2 * (2 * PATCH) ** 2, "longest_edge": 2 * SIDE**2}},
    ids={
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    },
    special=("[gMASK]", "<sop>", "<|system|>", "<|assistant|>"),
    ends=("<|endoftext|>", "<|user|>", "<|endoftext|>"),
    config=QWEN2.config,
    template=turns(
        begin="[gMASK]<sop>",
        before="<|{role}|>\\n",
        after="",
        picture="<|begin_of_image|><|image|><|end_of_image|>",
        answer="<|assistant|>\\n",
    ),
)
# Attention without positions has no rotated part, and as many keys as queries.
_NO_POSITIONS: Final = {
    "text_config.num_key_value_heads": 4,
    "text_config.head_dim": 0,
    "text_config.qk_rope_head_dim": 0,
    "text_config.qk_nope_head_dim": PER_HEAD,
}

_GLM_ROWS: Final[dict[str, Row]] = {
    "glm4v": _GLM,
    # Half of each head is rotated.
    "glm4v_moe": replace(_GLM, like="glm4v", config={"text_config.rope_parameters.mrope_section": [1, 1, 2]}),
    "glm46v": _GLM,
    "glm_ocr": replace(_GLM, like="glm46v"),
    "glmga": replace(_GLM, like="glm46v"),
    "glm5_next": replace(_GLM, pictures=GRID | {"min_image_tokens": 1, "max_image_tokens": 4}, config=_NO_POSITIONS),
}

ROWS: Final[dict[str, Row]] = _OTHERS | _GLM_ROWS
