"""Families whose language model looks at the picture through cross-attention: it takes one place, or none.

Usage: ``row = ROWS["mllama"]``
"""

from __future__ import annotations

from typing import Final

from tests.families.kin.tiles import IDEFICS3, SQUARE
from tests.families.row import Row
from tests.families.shrink import SIDE, WIDTH
from tests.families.templates import turns

ROWS: Final[dict[str, Row]] = {
    "mllama": Row(
        image="<|image|>",
        sayable=False,
        special=("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"),
        ends=("<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"),
        pictures={"size": SQUARE, "max_image_tiles": 4},
        # A patch's features are those of the last layer and of each layer listed as intermediate.
        config={"vision_config.vision_output_dim": 2 * WIDTH},
        template=turns(
            begin="<|begin_of_text|>",
            before="<|start_header_id|>{role}<|end_header_id|>\\n\\n",
            after="<|eot_id|>",
            picture="<|image|>",
            answer="<|start_header_id|>assistant<|end_header_id|>\\n\\n",
        ),
        counted=False,
    ),
    "idefics": Row(
        image="<image>",
        special=IDEFICS3.special,
        pictures={"image_size": SIDE},
        processor={"image_size": SIDE},
        counted=False,
    ),
}
