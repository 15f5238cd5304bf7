"""Every family that can be built here, in one table, and every one that cannot, with the reason.

Usage: ``row = ROWS["llava"]``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.families.kin import captions, codes, crossing, gemma, grids, llava, pages, qwen, tiles
from tests.families.row import Row

ROWS: Final[Mapping[str, Row]] = {
    **qwen.ROWS,
    **grids.ROWS,
    **tiles.ROWS,
    **llava.ROWS,
    **gemma.ROWS,
    **pages.ROWS,
    **crossing.ROWS,
    **codes.ROWS,
    **captions.ROWS,
}

_TORCHVISION: Final = """cohere2_vision gemma4_unified inkling2 inkling_mm_model kimi_k25 lfm2_vl llama4 minicpm_ocr
    minimax_m3_vl molmo2 muse_glimmer muse_spark nemotron_h_omni pp_formulanet step3p7 unlimited_ocr"""

REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(_TORCHVISION.split(), "Its image processor needs torchvision, which the tests do without."),
    **dict.fromkeys(("mistral3", "mistral_large4"), "Its processor needs torchvision, which the tests do without."),
    **dict.fromkeys(
        ("fast_vlm", "gemma3n", "perception_lm"), "Its vision tower needs timm, which the tests do without."
    ),
    "evolla": "It reads proteins, not pictures.",
    "fuyu": "Without torchvision its image processor asks a tensor for NumPy's transpose and fails.",
    "instructblipvideo": "It sees videos only.",
    "mistral4": "It is the language model alone and sees nothing.",
    "pi0": "It answers with a robot's moves, not with words.",
    "shieldgemma2": "It classifies: its processor puts three questions of its own in place of the text.",
    "udop": "It reads the words and boxes of an OCR engine beside the picture.",
    "vision-encoder-decoder": "It is any encoder with any decoder: it has no processor and reads no text.",
}
