"""Families that read pages: a tower of Segment Anything on a large square, and always the same number of places.

Usage: ``row = ROWS["got_ocr2"]``
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.families.kin.tiles import CHATML_ENDS
from tests.families.row import Row
from tests.families.templates import chatml, turns

# The classes count on 64 × 64 patches, of which four halvings of the area leave 256; small patches keep it quick.
PLACES: Final = 256
SIDE: Final = 128
SQUARE: Final = {"height": SIDE, "width": SIDE}
SAM: Final = {"image_size": SIDE, "patch_size": 2, "window_size": 8, "num_attention_heads": 1}

GOT: Final = Row(
    image="<imgpad>",
    special=("<img>", "</img>"),
    ends=CHATML_ENDS,
    pictures={"size": SQUARE},
    config={f"vision_config.{name}": value for name, value in SAM.items()},
    template=chatml("<img><imgpad></img>"),
    words_alone=False,
)

ROWS: Final[dict[str, Row]] = {
    "got_ocr2": replace(GOT, flat=True),
    # Its processor leaves the places to the template.
    "pp_chart2table": replace(GOT, template=chatml(f"<img>{'<imgpad>' * PLACES}</img>")),
    "deepseek_ocr2": Row(
        image="<image>",
        pictures={"size": SQUARE, "tile_size": 96},
        processor={"patch_size": 2},
        config={
            **{f"vision_config.sam_config.{name}": value for name, value in SAM.items()},
            "vision_config.sam_config.downsample_channels": [64, 64],
            "text_config.num_experts_per_tok": 2,
            "text_config.mlp_layer_types": ["dense", "sparse"],
        },
        template=turns(before="", after="\\n", picture="<image>\\n", answer=""),
    ),
}
