"""The models that the shipped recipes are for, and the commands in their headers that fine-tune each.

Usage: ``recipe, *overrides = commands()["Qwen/Qwen3-VL-8B-Instruct"]``
"""

from __future__ import annotations

import re
from typing import Final

from qlmm.recipe import library
from qlmm.recipe.load import load_recipe

# Each with the library's name for its kind.
MODELS: Final = {
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen2_5_vl",
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2_5_vl",
    "Qwen/Qwen3-VL-2B-Instruct": "qwen3_vl",
    "Qwen/Qwen3-VL-4B-Instruct": "qwen3_vl",
    "Qwen/Qwen3-VL-8B-Instruct": "qwen3_vl",
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": "smolvlm",
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": "smolvlm",
    "OpenGVLab/InternVL3-1B-hf": "internvl",
    "OpenGVLab/InternVL3-2B-hf": "internvl",
    "OpenGVLab/InternVL3-8B-hf": "internvl",
    "google/gemma-3-4b-it": "gemma3",
    "google/paligemma2-3b-pt-224": "paligemma",
    "google/paligemma2-3b-pt-448": "paligemma",
    "llava-hf/llava-1.5-7b-hf": "llava",
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": "llava_onevision",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": "llava_onevision",
    "meta-llama/Llama-3.2-11B-Vision-Instruct": "mllama",
    "HuggingFaceM4/Idefics3-8B-Llama3": "idefics3",
    "Salesforce/blip2-opt-2.7b": "blip-2",
    "Salesforce/blip2-flan-t5-xl": "blip-2",
    "Salesforce/instructblip-vicuna-7b": "instructblip",
}


def commands() -> dict[str, tuple[str, ...]]:
    """For each native model: the recipe that fine-tunes it, and the overrides with which a header says to name it."""
    found: dict[str, tuple[str, ...]] = {}
    for name, path in library.shipped().items():
        recipe = load_recipe(path).recipe
        if recipe.training.objective != "sft":
            continue
        own = recipe.base.model
        if own is not None:
            found[own] = (name,)
        for words in re.findall(rf"(?m)^#.*qlmm finetune {name} (.*base\.model=.*)$", path.read_text("utf-8")):
            overrides = tuple(words.split())
            (model,) = (word.removeprefix("base.model=") for word in overrides if word.startswith("base.model="))
            found[model] = (name, *overrides)
    return found
