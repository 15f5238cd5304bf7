"""Older families that go on with a text about one picture and know no turns; most put its places there themselves.

Usage: ``row = ROWS["blip-2"]``
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.families.kin.llava import CROP
from tests.families.kin.tiles import SQUARE
from tests.families.row import Row
from tests.families.shrink import PATCH

QUERIES: Final = 4
LATENTS: Final = 16
PATCHES: Final = {"patch_size": {"height": PATCH, "width": PATCH}}
FLAT_PATCH: Final = {"vision_config.patch_embed_hidden_size": 3 * PATCH**2}

BLIP2: Final = Row(
    image="<image>",
    ends=("</s>", "</s>", "<pad>"),
    pictures={"size": SQUARE},
    processor={"num_query_tokens": QUERIES},
    config={"num_query_tokens": QUERIES},
    several=False,
    words_alone=False,
    counted=False,
)

ROWS: Final[dict[str, Row]] = {
    "blip": replace(BLIP2, image=None, ends=("[DEC]", "[SEP]", "[PAD]"), processor={}, config={}),
    "blip-2": BLIP2,
    "instructblip": BLIP2,
    "git": Row(ends=("[CLS]", "[SEP]", "[PAD]"), pictures=CROP, several=False, counted=False),
    "kosmos-2": Row(
        unknown="<unk>",
        pictures=CROP,
        processor={"num_patch_index_tokens": 8},
        processor_class="Kosmos2Processor",
        config={"latent_query_num": LATENTS},
        # Its processor does not keep these: each call decides anew.
        call={"num_image_tokens": LATENTS},
        several=False,
        words_alone=False,
        counted=False,
    ),
    "kosmos-2.5": Row(
        image="<s>",
        named={"boi_token": "<image>", "eoi_token": "</image>", "image_token": "<s>"},
        pictures=PATCHES,
        processor={"num_image_tokens": LATENTS},
        processor_class="Kosmos2_5Processor",
        config=FLAT_PATCH | {"latent_query_num": LATENTS},
        call={"max_patches": 32},
        several=False,
        words_alone=False,
        counted=False,
    ),
    "pix2struct": Row(
        pictures=PATCHES,
        config=FLAT_PATCH,
        call={"max_patches": 32},
        several=False,
        words_alone=False,
        counted=False,
    ),
    "florence2": Row(
        image="<image>",
        named={"image_token": "<image>"},
        pictures=CROP | {"image_seq_length": 17},
        config={
            "vision_config.depths": [1, 1],
            "vision_config.patch_size": [7, 3],
            "vision_config.patch_stride": [4, 2],
            "vision_config.patch_padding": [3, 1],
            "vision_config.patch_prenorm": [False, True],
            "vision_config.embed_dim": [32, 64],
            "vision_config.num_heads": [2, 4],
            "vision_config.num_groups": [2, 4],
            "vision_config.window_size": 4,
        },
        answers=True,
        several=False,
    ),
}
