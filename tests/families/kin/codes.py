"""Families that turn a picture into words of a codebook: Chameleon and Emu3.

Usage: ``row = ROWS["emu3"]``
"""

from __future__ import annotations

from typing import Final

from tests.families.row import Row
from tests.families.shrink import SIDE
from tests.families.templates import turns

CODES: Final = 10
SMALL: Final = {
    "vq_config.base_channels": 32,
    "vq_config.channel_multiplier": [1, 1, 1, 1],
    "vq_config.num_res_blocks": 1,
}

ROWS: Final[dict[str, Row]] = {
    "chameleon": Row(
        image="<image>",
        special=("<racm3:break>", "<eoss>", *(f"IMGIMG{chr(ord('A') + code)}Z" for code in range(CODES))),
        separator="<reserved08706>",
        pictures={"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}},
        processor={"image_seq_length": (SIDE // 8) ** 2},
        config={
            **SMALL,
            "vq_config.num_embeddings": CODES,
            "vq_config.latent_channels": 32,
            "vq_config.resolution": SIDE,
        },
        marker="<image>",
    ),
    "emu3": Row(
        image="<image>",
        named={
            "image_token": "<image>",
            "boi_token": "<|image start|>",
            "eoi_token": "<|image end|>",
            "image_wrapper_token": "<|image token|>",
            "eof_token": "<|extra_201|>",
        },
        special=("<|extra_200|>", *(f"<|visual token {code:06d}|>" for code in range(CODES))),
        ends=("<|extra_203|>", "<|extra_204|>", "<|endoftext|>"),
        pictures={"min_pixels": SIDE**2, "max_pixels": 2 * SIDE**2},
        config=SMALL | {"vq_config.codebook_size": CODES, "vq_config.hidden_size": 32},
        template=turns(before="{role}: ", after=". ", picture="<image>", answer="assistant:"),
    ),
}
