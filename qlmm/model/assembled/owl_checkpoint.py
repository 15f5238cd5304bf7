"""A released mPLUG-Owl (version 1) taken apart: its vision tower and its language model as ordinary model folders.

transformers has no class for the released model, but for each of its parts. So each part is written once into qlmm's
cache under the names its class has, and everything after that reads an ordinary folder. The vision tower is CLIP's ViT
in another wrapper, with a fused query-key-value layer, other names and a smaller epsilon.

Usage: ``folder = owl_part("MAGAer13/mplug-owl-llama-7b", None, "vision")``
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, Field, JsonValue, PositiveFloat, PositiveInt
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
    PreTrainedConfig,
)

from qlmm.core.errors import ModelError
from qlmm.core.json_files import read_object
from qlmm.model.assembled.published import Checkpoint, check_whole, configuration, converted, open_checkpoint

__all__ = ["OwlPart", "owl_part", "vision_config_from", "vision_state"]

OwlPart = Literal["vision", "language"]

MODEL_TYPE = "mplug-owl"
VISION, LANGUAGE = "vision_model.", "language_model."
# The class default is CLIP's 1e-5; the released encoder was trained with 1e-6 (max difference 1.5e-5 otherwise).
VISION_EPS = 1e-6
# Tables that are computed anew, and that old versions of transformers saved.
_COMPUTED = (".inv_freq", ".position_ids", ".masked_bias")
_COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
_RENAMED = {
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.position_embedding": "embeddings.position_embedding.weight",
    "embeddings.patch_embed.weight": "embeddings.patch_embedding.weight",
    "embeddings.pre_layernorm.weight": "pre_layrnorm.weight",
    "embeddings.pre_layernorm.bias": "pre_layrnorm.bias",
    "input_layernorm": "layer_norm1",
    "self_attn.dense": "self_attn.out_proj",
    "post_attention_layernorm": "layer_norm2",
}
_WITHOUT_BATCH = {"embeddings.cls_token": 2, "embeddings.position_embedding": 1}
# One file of the language model is in memory at a time.
MOST_BYTES = 1 << 30
_SPECIAL = {"bos_token_id", "eos_token_id", "pad_token_id", "use_cache"}


class _VisionStated(BaseModel):
    """What the released configuration has about the vision tower and its weights do not show."""

    num_attention_heads: PositiveInt = 16
    layer_norm_eps: PositiveFloat = VISION_EPS


class _OwlStated(BaseModel):
    """The sections of the released configuration that are read."""

    vision_config: _VisionStated = _VisionStated()
    text_config: dict[str, object] = Field(default_factory=dict)


def owl_part(path: str, revision: str | None, part: OwlPart) -> tuple[Path, str | None] | None:
    """The folder of a part of a released mPLUG-Owl, and the commit it comes from; None for every other model.

    Raises M151 to M155 for a checkpoint that is not whole, has code in it or is of another kind, M005 when its
    tokenizer needs a package that is not installed, and OSError when it cannot be fetched.
    """
    if configuration(path, revision).get("model_type") != MODEL_TYPE:
        return None
    checkpoint = open_checkpoint(path, revision)
    build = _build_vision if part == "vision" else _build_language
    commit = None if Path(path).is_dir() else checkpoint.folder.name
    return converted(checkpoint, part, partial(build, checkpoint)), commit


def _build_vision(checkpoint: Checkpoint, aside: Path) -> None:
    """The tower as a ``CLIPVisionModel``, and the image processor."""
    stated = _OwlStated.model_validate(checkpoint.stated).vision_config
    released = dict(checkpoint.tensors(lambda name: name.startswith(VISION) and not name.endswith(_COMPUTED)))
    if not released:
        raise _without(checkpoint, "vision tower", VISION)
    heads = stated.num_attention_heads
    config = vision_config_from(released, heads=heads, eps=stated.layer_norm_eps)
    state = {name: value.contiguous() for name, value in vision_state(released, heads=heads).items()}
    with torch.device("meta"):
        check_whole(checkpoint.name, "vision tower", CLIPVisionModel(config), _shapes(state))
    save_file(state, aside / "model.safetensors", metadata={"format": "pt"})
    _write_config(config, CLIPVisionModel.__name__, aside)
    _pictures(checkpoint.folder, config.image_size).save_pretrained(aside)


def vision_state(released: Mapping[str, Tensor], *, heads: int) -> dict[str, Tensor]:
    """The released vision tower's weights under ``CLIPVisionModel``'s names.

    The fused layer's rows are ordered head, then query, key, value, then width. A reading in any other order gives
    silently wrong features.
    """
    state: dict[str, Tensor] = {}
    for name, weight in _without_prefix(released).items():
        if ".query_key_value." in name:
            # (heads * 3 * d, V) or, for a bias, (heads * 3 * d).
            rows, *rest = weight.shape
            parts = weight.reshape(heads, 3, rows // heads // 3, *rest).unbind(1)
            stem, kind = name.split("query_key_value.")
            state |= {f"{stem}{one}_proj.{kind}": part.flatten(0, 1) for one, part in zip("qkv", parts, strict=True)}
        else:
            state[_clip_name(name)] = weight.flatten(0, _WITHOUT_BATCH[name]) if name in _WITHOUT_BATCH else weight
    return state


def _without_prefix(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(VISION): weight for name, weight in released.items()}


def _clip_name(name: str) -> str:
    if name in _RENAMED:
        return _RENAMED[name]
    for old, new in _RENAMED.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name


def vision_config_from(released: Mapping[str, Tensor], *, heads: int, eps: float = VISION_EPS) -> CLIPVisionConfig:
    """The configuration of the ``CLIPVisionModel`` for a released vision tower: sizes are read from its weights."""
    vision = _without_prefix(released)
    width, channels, patch, _ = vision["embeddings.patch_embed.weight"].shape
    grid = round((vision["embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=vision["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=1 + max(int(name.split(".")[2]) for name in vision if name.startswith("encoder.layers.")),
        num_attention_heads=heads,
        num_channels=channels,
        image_size=grid * patch,
        patch_size=patch,
        layer_norm_eps=eps,
        hidden_act="quick_gelu",
    )


def _pictures(folder: Path, side: int) -> CLIPImageProcessorPil:
    """The released image processor, which is CLIP's under another name."""
    file = folder / "preprocessor_config.json"
    stated = _stated(file)
    known = CLIPImageProcessorPil(size=side, crop_size=side).to_dict()
    return CLIPImageProcessorPil(**(known | {key: value for key, value in stated.items() if key in known}))


def _build_language(checkpoint: Checkpoint, aside: Path) -> None:
    """The language model under its class's names, in files of limited size, and its tokenizer."""
    config = _text_config(checkpoint)
    shapes: dict[str, tuple[int, ...]] = {}
    places: dict[str, str] = {}
    total = 0
    for number, state in enumerate(_portions(checkpoint), 1):
        file = f"model-{number:05}.safetensors"
        save_file(state, aside / file, metadata={"format": "pt"})
        shapes |= _shapes(state)
        places |= dict.fromkeys(state, file)
        total += sum(value.nbytes for value in state.values())
    if not shapes:
        raise _without(checkpoint, "language model", LANGUAGE)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    check_whole(checkpoint.name, "language model", model, shapes)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (aside / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True), "utf-8")
    _write_config(config, type(model).__name__, aside)
    _copy_tokenizer(checkpoint, aside)


def _text_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The language model's configuration, without the settings for generation that old versions kept in it."""
    stated = dict(_OwlStated.model_validate(checkpoint.stated).text_config)
    old = GenerationConfig().to_dict().keys() - _SPECIAL
    kept = {key: value for key, value in stated.items() if key not in old and key != "model_type"}
    config: PreTrainedConfig = AutoConfig.for_model(str(stated.get("model_type", "llama")), **kept)
    return config


def _portions(checkpoint: Checkpoint) -> Iterator[dict[str, Tensor]]:
    """The language model's weights, as many at a time as fit into one file."""
    state: dict[str, Tensor] = {}
    for name, value in checkpoint.tensors(lambda name: name.startswith(LANGUAGE) and not name.endswith(_COMPUTED)):
        if state and sum(one.nbytes for one in state.values()) + value.nbytes > MOST_BYTES:
            yield state
            state = {}
        # Tied weights share memory, which the format forbids.
        state[name.removeprefix(LANGUAGE)] = value.clone(memory_format=torch.contiguous_format)
    if state:
        yield state


def _copy_tokenizer(checkpoint: Checkpoint, aside: Path) -> None:
    """Tokenizer and generation settings; the released tokenizer class is LLaMA's under another name."""
    for name in _COPIED:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, aside / name)
    needed = (aside / "tokenizer.model").is_file() and not (aside / "tokenizer.json").is_file()
    if needed and importlib.util.find_spec("sentencepiece") is None:
        message = f"the tokenizer of {checkpoint.name} needs the package sentencepiece, which is not installed"
        raise ModelError.one("M005", message, help="pip install sentencepiece")
    file = aside / "tokenizer_config.json"
    stated = _stated(file)
    if str(stated.get("tokenizer_class", "")).startswith("MplugOwl"):
        file.write_text(json.dumps(stated | {"tokenizer_class": "LlamaTokenizer"}, indent=1), "utf-8")


def _stated(file: Path) -> dict[str, JsonValue]:
    """What a file of settings has, nothing where there is none; M152 for one that is damaged."""
    try:
        return read_object(file) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise ModelError.one("M152", f"{file} is damaged: {error}", help="fetch the file again") from error


def _write_config(config: PreTrainedConfig, architecture: str, folder: Path) -> None:
    config.architectures = [architecture]
    config.save_pretrained(folder)


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _without(checkpoint: Checkpoint, part: str, prefix: str) -> ModelError:
    message = f"{checkpoint.name} has no {part}: no weight's name begins with {prefix}"
    return ModelError.one("M155", message, help="name a released mPLUG-Owl, or an ordinary model for this part")
