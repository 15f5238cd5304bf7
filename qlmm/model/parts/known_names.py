"""What the anatomy of a model does not show: names, each with the reason why it is listed.

These are names of modules, which families share, rather than families: a new model built from the usual blocks needs
no new row.

Usage: ``"merger" in CONNECTOR_IN_TOWER``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CONNECTOR_IN_TOWER", "CROSS_ATTENTION", "OTHER", "SECOND_TOWERS", "UNREAD", "UNSPLIT", "WITHOUT_GRADIENT"]

PartName = Literal["vision", "connector", "language", "head", "other"]

# Modules directly inside a vision tower that belong to the connector.
CONNECTOR_IN_TOWER = {
    "merger": "patches to the language model's width: Qwen-VL, GLM-V, EXAONE-4.5, Inkling",
    "deepstack_merger_list": "features of inner layers, added in the first decoder layers: Qwen3-VL",
    "merger_list": "the same under another name: Qwen3-Omni",
    "vit_merger": "joins neighbouring patches: MiniCPM-V",
    "downsample": "joins 2 x 2 patches before the merger: GLM-V",
    "downsampler1": "joins patches: Step3",
    "downsampler2": "joins patches: Step3",
    "connector": "the tower's class carries the connector: Granite-Docling",
    "vision_adapter": "pixel shuffle and MLP: Llama 4",
    "head_linear": "visual vocabulary, whose embeddings lie outside the tower: Ovis2",
    "head_norm": "visual vocabulary: Ovis2",
}

# Layers inside a language model that no gradient reaches.
WITHOUT_GRADIENT = {"indexer": "chooses which keys are read: sparse attention of GLM-5, Qwen 4 and similar models"}

# Modules of a connector whose last layer has branches that nothing reads.
UNREAD = {"qformer": ("intermediate", "output")}  # InstructBLIP reads the queries only, not the instruction's tokens

# Attention of decoder layers that read the picture.
CROSS_ATTENTION = {"cross_attn": "gated layers between the self-attention ones: Mllama, Idefics"}

# Left-over modules that read pictures too.
SECOND_TOWERS = {
    "high_res_vision_model": "DeepSeek-VL reads the picture twice, the second time with SAM",
    "high_res_vision_neck": "DeepSeek-VL: end of the second tower",
    "vision_encoder": "a second encoder beside SAM: DeepSeek-OCR",
    "sam_encoder": "the first encoder: DeepSeek-OCR",
}

# Left-over modules that are of no use for reading pictures and text: always frozen.
OTHER = {
    "audio_tower": "audio: Qwen-Omni and similar models",
    "audio_encoder": "audio",
    "audio_projection": "audio",
    "embed_audio": "audio: Gemma 3n, Gemma 4",
    "video_tower": "videos are shown as pictures, which have a tower of their own: Video-LLaVA",
    "vqmodel": "makes pictures: Janus",
    "generation_embeddings": "makes pictures: Janus",
    "generation_aligner": "makes pictures: Janus",
    "generation_head": "makes pictures: Janus",
}


@dataclass(frozen=True, slots=True)
class Unsplit:
    """Parts of a class whose language model is not a module of its own; ``discrete`` as in ``Parts``."""

    why: str
    vision: tuple[str, ...]
    connector: tuple[str, ...]
    language: tuple[str, ...]
    discrete: bool = False


UNSPLIT = {
    "idefics": Unsplit(
        "the decoder's layers lie beside the cross-attention layers, directly in the model",
        vision=("model.vision_model",),
        connector=("model.gated_cross_attn_layers",),
        language=("model.embed_tokens", "model.layers", "model.norm"),
    ),
    "git": Unsplit(
        "a BERT-like decoder beside the tower, directly in the model",
        vision=("git.image_encoder",),
        connector=("git.visual_projection",),
        language=("git.embeddings", "git.encoder"),
    ),
    "fuyu": Unsplit(
        "no tower at all: patches go through one linear layer into the language model",
        vision=(),
        connector=("model.vision_embed_tokens",),
        language=("model.language_model",),
    ),
    "chameleon": Unsplit(
        "pictures become tokens of the language model's own vocabulary, so there is no connector",
        vision=("model.vqmodel",),
        connector=(),
        language=("model.embed_tokens", "model.layers", "model.norm"),
        discrete=True,
    ),
    "emu3": Unsplit(
        "pictures become tokens of the language model's own vocabulary, so there is no connector",
        vision=("model.vqmodel",),
        connector=(),
        language=("model.text_model",),
        discrete=True,
    ),
    "t5gemma2": Unsplit(
        "tower and connector lie inside the text encoder",
        vision=("model.encoder.vision_tower",),
        connector=("model.encoder.multi_modal_projector",),
        language=("model.encoder.text_model", "model.decoder"),
    ),
}
