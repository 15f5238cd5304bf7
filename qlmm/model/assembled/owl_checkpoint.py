"""A released mPLUG-Owl (version 1) taken apart: its vision tower and its language model as ordinary model folders.

transformers has no class for the released model, but for each of its parts. So each part is written once into qlmm's
cache under the names its class has, and everything after that sees a folder like any other.

Usage: ``folder = owl_part("MAGAer13/mplug-owl-llama-7b", None, "vision")``
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    CLIPVisionModel,
    GenerationConfig,
    PreTrainedConfig,
)

from qlmm.core.errors import ModelError
from qlmm.model.assembled.owl_weights import VISION, vision_config_from, vision_state
from qlmm.model.assembled.published import Checkpoint, check_whole, configuration, converted, open_checkpoint
from qlmm.model.contract import Stated

__all__ = ["OwlPart", "is_owl", "owl_part"]

OwlPart = Literal["vision", "language"]

MODEL_TYPE = "mplug-owl"
LANGUAGE = "language_model."
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
# Memory holds one file of the language model at a time.
MOST_BYTES = 1 << 30
_SPECIAL = {"bos_token_id", "eos_token_id", "pad_token_id", "use_cache"}


class _VisionStated(BaseModel):
    """What the released configuration says about the vision tower and its weights do not show."""

    num_attention_heads: PositiveInt = 16
    layer_norm_eps: PositiveFloat = 1e-6


class _OwlStated(BaseModel):
    """The sections of the released configuration that are read."""

    vision_config: _VisionStated = _VisionStated()
    text_config: dict[str, object] = Field(default_factory=dict)


def is_owl(stated: Stated) -> bool:
    """Whether a configuration is that of a released mPLUG-Owl, version 1."""
    return stated.get("model_type") == MODEL_TYPE


def owl_part(path: str, revision: str | None, part: OwlPart) -> tuple[Path, str | None] | None:
    """The folder of a part of a released mPLUG-Owl, and the commit it comes from; None for every other model.

    Args:
        path: folder or Hub id; what is on the Hub is fetched.
        revision: branch or commit on the Hub.
        part: which one.

    Raises:
        ModelError: M151 to M155 for a checkpoint that is not whole, holds code or is of another kind, M005 when its
            tokenizer needs a package that is not installed.
        OSError: when it cannot be fetched.
    """
    if not is_owl(configuration(path, revision)):
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


def _pictures(folder: Path, side: int) -> CLIPImageProcessorPil:
    """The released image processor, which is CLIP's under another name."""
    file = folder / "preprocessor_config.json"
    stated = json.loads(file.read_text("utf-8")) if file.is_file() else {}
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
    if (aside / "tokenizer.model").is_file() and not (aside / "tokenizer.json").is_file():
        _needs_sentencepiece(checkpoint)
    file = aside / "tokenizer_config.json"
    stated = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if str(stated.get("tokenizer_class", "")).startswith("MplugOwl"):
        file.write_text(json.dumps(stated | {"tokenizer_class": "LlamaTokenizer"}, indent=1), "utf-8")


def _needs_sentencepiece(checkpoint: Checkpoint) -> None:
    if importlib.util.find_spec("sentencepiece") is None:
        raise ModelError.one(
            "M005",
            f"the tokenizer of {checkpoint.name} needs the package sentencepiece, which is not installed",
            help="pip install sentencepiece",
        )


def _write_config(config: PreTrainedConfig, architecture: str, folder: Path) -> None:
    config.architectures = [architecture]
    config.save_pretrained(folder)


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _without(checkpoint: Checkpoint, part: str, prefix: str) -> ModelError:
    return ModelError.one(
        "M155",
        f"{checkpoint.name} holds no {part}: no weight's name begins with {prefix}",
        help="name a released mPLUG-Owl, or an ordinary model for this part",
    )
