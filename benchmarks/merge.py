"""Merging a checkpoint larger than the memory it may take: qlmm against PEFT's own merge, on the same files.

A LLaVA of random bf16 weights is written in shards, with a LoRA adapter for all of its language model's linear layers.
Copying the files with fsync is the measure of what the disk allows. Each tool runs in a process of its own.

Usage: ``python -m benchmarks.merge FOLDER`` needs three times the checkpoint there; ``--small`` tries it out
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor

from benchmarks.machine import write_result
from benchmarks.shapes import PATCH, PICTURE, STD, tokenizer
from qlmm.artifacts.adapter.folder import file_hashes, stage_adapter
from qlmm.artifacts.adapter.manifest import Manifest, versions, write_manifest
from qlmm.artifacts.merge.merge import Settings, merge
from qlmm.artifacts.safetensors_stream import Output, Reader, cut, header, write_shards
from qlmm.data.fingerprint import DataFingerprint
from qlmm.model.loading.base import Base
from qlmm.model.peft.adapter import attach, place
from qlmm.recipe.load import parse_recipe

__all__ = ["FULL", "SMALL", "Size"]

MOST_MEMORY = 2 << 30
MOST_TIMES_A_COPY = 1.5
KIB = 1024
PEER = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText
base = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
model = PeftModel.from_pretrained(base, sys.argv[2]).merge_and_unload()
model.save_pretrained(sys.argv[3], max_shard_size=int(sys.argv[4]))
"""
OURS = """
import sys
from benchmarks.merge import merge_here
merge_here(sys.argv[2], sys.argv[3])
"""
RECIPE = """
version: 1
base: {{model: {folder}/base, quantize: none}}
adapter: {{r: 16, dropout: 0}}
data: {{sources: [{{path: rows.jsonl}}]}}
output: {{dir: {folder}/run}}
"""


@dataclass(frozen=True)
class Size:
    """The language model's sizes, the rest is LLaVA-1.5's, and how the checkpoint is cut."""

    layers: int
    width: int
    inner: int
    vocabulary: int
    shards: int
    vision_layers: int = 24
    vision_width: int = 1024


FULL = Size(layers=32, width=2560, inner=8192, vocabulary=32_000, shards=8)
SMALL = Size(layers=4, width=256, inner=512, vocabulary=2_000, shards=8, vision_layers=2, vision_width=128)


def merge_here(adapter: str, out: str) -> None:
    """What `qlmm merge --no-measure` does."""
    merge(adapter, Path(out), Settings(measured=False))


def prepare(folder: Path, size: Size) -> None:
    """Write the checkpoint, shard by shard, and an adapter for it."""
    words = tokenizer(size.vocabulary)
    words.add_tokens(["<image>"], special_tokens=True)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=size.vision_width,
            intermediate_size=4 * size.vision_width,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=size.vision_width // 64,
            image_size=PICTURE,
            patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            vocab_size=len(words),
            hidden_size=size.width,
            intermediate_size=size.inner,
            num_hidden_layers=size.layers,
            num_attention_heads=size.width // 64,
        ),
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    _write_weights(folder / "base", config, size.shards)
    _processor(words).save_pretrained(folder / "base")
    _write_adapter(folder)


def _write_weights(folder: Path, config: LlavaConfig, shards: int) -> None:
    """Random bf16 weights, one tensor in memory at a time."""
    folder.mkdir()
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    config.architectures, config.dtype = [type(model).__name__], torch.bfloat16
    config.save_pretrained(folder)
    chance = torch.Generator().manual_seed(0)

    def drawn(value: torch.Tensor) -> Callable[[Reader], torch.Tensor]:
        return lambda reader: torch.empty(value.shape, dtype=torch.bfloat16).normal_(0.0, STD, generator=chance)

    outputs = [
        Output(name, torch.bfloat16, tuple(value.shape), "", drawn(value)) for name, value in model.state_dict().items()
    ]
    # A little more than an equal share, because tensors are not divided.
    most = int(1.05 * sum(one.size for one in outputs) / shards)
    write_shards(folder, cut(outputs, most), lambda line: None)


def _processor(words: Any) -> LlavaProcessor:
    from transformers import CLIPImageProcessor

    template = (Path(__file__).parents[1] / "qlmm/model/templates/vicuna.jinja").read_text("utf-8")
    square = {"height": PICTURE, "width": PICTURE}
    pictures = CLIPImageProcessor(size={"shortest_edge": PICTURE}, crop_size=square)
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def _write_adapter(folder: Path) -> None:
    """LoRA and a connector with random weights, as a run would leave them."""
    recipe = parse_recipe(RECIPE.format(folder=folder), "merge.yaml").recipe
    base = Base.resolve(recipe.base)
    shape = base.shape
    with torch.device("meta"):
        model = attach(shape.model, place(shape.model, shape.parts, recipe.adapter), recipe.adapter, seed=0)
    drawn = torch.Generator().manual_seed(0)
    for name, parameter in list(model.named_parameters()):
        if parameter.requires_grad:
            around, _, last = name.rpartition(".")
            value = 0.02 * torch.randn(parameter.shape, generator=drawn)
            model.get_submodule(around).register_parameter(last, torch.nn.Parameter(value))
    stage = stage_adapter(model, base.processor, folder, base.identity)
    manifest = Manifest(
        base=base.identity,
        recipe=recipe,
        precision="bf16",
        seed=0,
        frozen_sha256="",
        data=DataFingerprint("", ()),
        steps=0,
        versions=versions(),
        files=file_hashes(stage),
    )
    write_manifest(stage, manifest)
    stage.rename(folder / "adapter")


def copy(source: Path, target: Path) -> float:
    """Seconds that copying the weights takes, each file on the disk before the next."""
    target.mkdir()
    begun = time.perf_counter()
    for path in sorted(source.glob("*.safetensors")):
        shutil.copyfile(path, target / path.name)
        handle = os.open(target / path.name, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return time.perf_counter() - begun


def measured(program: str, *words: str) -> dict[str, float]:
    """Seconds and peak memory of a program in a process of its own, files it maps included."""
    begun = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        raise SystemExit(f"a process failed: {program.splitlines()[-1]}")
    return {"seconds": round(time.perf_counter() - begun, 1), "peak_bytes": usage.ru_maxrss * KIB}


def same(first: Path, second: Path) -> float:
    """The largest difference between two checkpoints' tensors of the same name."""
    theirs = {one.key: one for path in second.glob("*.safetensors") for one in header(path)}
    apart = 0.0
    with Reader() as one_reader, Reader() as other_reader:
        for path in sorted(first.glob("*.safetensors")):
            for one in header(path):
                difference = one_reader.read(one).float() - other_reader.read(theirs.pop(one.key)).float()
                apart = max(apart, float(difference.abs().max()))
    if theirs:
        raise SystemExit(f"only the peer has {next(iter(theirs))}")
    return apart


def run(folder: Path, size: Size) -> dict[str, Any]:
    """Prepare, copy, merge twice, compare."""
    prepare(folder, size)
    files = sorted((folder / "base").glob("*.safetensors"))
    total, largest = (kind(path.stat().st_size for path in files) for kind in (sum, max))
    seconds = copy(folder / "base", folder / "copy")
    shutil.rmtree(folder / "copy")
    ours = measured(OURS, str(folder / "base"), str(folder / "adapter"), str(folder / "ours"))
    theirs = measured(PEER, str(folder / "base"), str(folder / "adapter"), str(folder / "theirs"), str(largest))
    return {
        "checkpoint_bytes": total,
        "shards": len(files),
        "largest_shard_bytes": largest,
        "copy_seconds": round(seconds, 1),
        "qlmm": ours,
        "peft": theirs,
        "largest_difference": same(folder / "ours", folder / "theirs"),
        "memory_within": ours["peak_bytes"] <= MOST_MEMORY + largest,
        "time_within": ours["seconds"] <= MOST_TIMES_A_COPY * seconds,
    }


def _main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("folder", type=Path, help="an empty folder on the disk to measure")
    asked.add_argument("--small", action="store_true", help="a checkpoint of a few MB; nothing is written down")
    options = asked.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    result = run(options.folder, SMALL if options.small else FULL)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    if not options.small:
        write_result("merge", result)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _main()
