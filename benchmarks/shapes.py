"""The parts of an Owl at any size, with random weights, as folders that the normal code path loads.

Nothing is downloaded: weights are drawn, the tokenizer is built from letters, pictures are noise. Weights are drawn and
written a few at a time, so that a model larger than the memory of the machine could be written.

Usage: ``TINY.write(folder, "cpu"); TINY.write_rows(folder, tokens=128); finetune(TINY.recipe(folder))``
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from qlmm.model.connectors.abstractor import swiglu_width
from qlmm.recipe.library import resolve
from qlmm.recipe.load import LoadedRecipe, load_recipe
from qlmm.training.plan import make_plan

__all__ = ["OWL", "TINY", "Shape", "tokenizer"]

ROWS = 12  # of each kind: with a picture, without
SHARD_BYTES = 2**30
STD = 0.02
PICTURE = 224
PATCH = 14
HEAD_WIDTH = 128
SPACE = "Ġ"  # what byte-level tokenizers write for a space


@dataclass(frozen=True)
class Shape:
    """Sizes of the three parts.

    Attributes:
        layers: of the language model, which has Llama's proportions.
        width: of the language model.
        vocabulary: entries of the tokenizer and rows of the embeddings.
        vision: sizes of the CLIP tower.
        connector: settings of the abstractor, where there is one.
    """

    layers: int
    width: int
    vocabulary: int
    vision: dict[str, int]
    connector: dict[str, int] = field(default_factory=dict)

    def write(self, folder: Path, device: str) -> None:
        """Write ``vision`` and ``language`` into a folder, drawing weights on a device."""
        self._write_language(folder / "language", device)
        self._write_vision(folder / "vision", device)

    def write_rows(self, folder: Path, tokens: int) -> None:
        """Write rows of exactly so many tokens each; what a chat template adds to a row is measured, not known."""
        guess = tokens // 2
        _write_rows(folder, words=(guess, guess), entries=self.vocabulary)
        ready = make_plan(self.recipe(folder, f"data.max_length={tokens}").recipe)
        totals = zip(ready.train, ready.encoder.measure(ready.train), strict=True)
        found = {bool(sample.images): lengths.total for sample, lengths in totals}
        words = guess + tokens - found[True], guess + tokens - found[False]
        _write_rows(folder, words=words, entries=self.vocabulary)

    def recipe(self, folder: Path, *overrides: str) -> LoadedRecipe:
        """The shipped recipe `owl_lora` on these parts and rows; what is not named here is the recipe's own."""
        ours = [
            f"base.vision={folder / 'vision'}",
            f"base.language={folder / 'language'}",
            *(f"base.connector.{key}={value}" for key, value in self.connector.items()),
            f"data.sources.0.path={folder / 'pictures.json'}",
            f"data.sources.0.image_root={folder}",
            f"data.sources.1.path={folder / 'text.jsonl'}",
            "training.accumulation=1",
            "training.workers=0",
            "training.log_every=1",
            "training.save_every=1000",
            "evaluation.rows=2",
            "evaluation.answers=1",
            "evaluation.max_new_tokens=8",
            f"output.dir={folder / 'run'}",
        ]
        return load_recipe(resolve("owl_lora"), [*ours, *overrides])

    def _write_language(self, folder: Path, device: str) -> None:
        words = tokenizer(self.vocabulary)
        config = LlamaConfig(
            vocab_size=len(words),
            hidden_size=self.width,
            intermediate_size=swiglu_width(self.width),
            num_hidden_layers=self.layers,
            num_attention_heads=max(2, self.width // HEAD_WIDTH),
            max_position_embeddings=2048,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
        _write_weights(folder, AutoModelForCausalLM, config, device)
        words.save_pretrained(folder)

    def _write_vision(self, folder: Path, device: str) -> None:
        # Imported here, because without torchvision the name itself warns; runs are quiet by now.
        from transformers import CLIPImageProcessor

        config = CLIPVisionConfig(**self.vision, image_size=PICTURE, patch_size=PATCH)
        _write_weights(folder, AutoModel, config, device)
        size = {"height": PICTURE, "width": PICTURE}
        CLIPImageProcessor(size={"shortest_edge": PICTURE}, crop_size=size).save_pretrained(folder)


OWL = Shape(
    layers=32,
    width=4096,
    vocabulary=32_000,
    vision={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    connector={"queries": 64, "layers": 6, "heads": 16, "inner": 2816},
)
TINY = Shape(
    layers=2,
    width=64,
    vocabulary=2_000,
    vision={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    connector={"queries": 8, "layers": 2, "heads": 4, "inner": 64},
)


def tokenizer(entries: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with so many entries, in which a space and a short word are one token."""
    special = ["<unk>", "<s>", "</s>"]
    letters = [_printable(byte) for byte in range(256)]
    merged = list(islice(_words(), entries - len(special) - len(letters)))
    backend = Tokenizer(
        models.BPE(
            vocab={token: place for place, token in enumerate([*special, *letters, *merged])},
            merges=[(word[:-1], word[-1]) for word in merged],
        )
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


def _words() -> Iterator[str]:
    """A space and letters, the shorter ones first, so that every word is one merge away from an earlier entry."""
    for length in range(1, 5):
        yield from (SPACE + "".join(letters) for letters in product(string.ascii_lowercase, repeat=length))


def _printable(byte: int) -> str:
    """GPT-2's character for a byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in kept:
        return chr(byte)
    return chr(256 + [other for other in range(256) if other not in kept].index(byte))


def _write_rows(folder: Path, *, words: tuple[int, int], entries: int) -> None:
    """Rows of one length: LLaVA's with a noise picture each in ``pictures.json``, and ``text.jsonl`` without.

    Args:
        folder: where they go.
        words: words of question and answer together, each of them one token: with a picture, and without.
        entries: the tokenizer's.
    """
    chance = random.Random(0)
    # Words of three letters, because one that follows no space takes as many tokens as it has letters.
    known = [word.removeprefix(SPACE) for word in islice(_words(), entries - 300) if len(word) == 4]
    pictures, texts = [], []
    for number in range(ROWS):
        Image.frombytes("RGB", (PICTURE, PICTURE), chance.randbytes(3 * PICTURE**2)).save(folder / f"{number}.png")
        question, answer = _said(chance, known, words[0])
        turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        pictures.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
        question, answer = _said(chance, known, words[1])
        texts.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    (folder / "pictures.json").write_text(json.dumps(pictures), encoding="utf-8")
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")


def _said(chance: random.Random, known: list[str], words: int) -> tuple[str, str]:
    """A question and an answer three times as long."""
    asked = words // 4
    return " ".join(chance.choices(known, k=asked)), " ".join(chance.choices(known, k=words - asked))


def _write_weights(folder: Path, auto: Any, config: PreTrainedConfig, device: str) -> None:
    """Write a model of random bf16 weights shard by shard, as `save_pretrained` names things."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = auto.from_config(config)
    shapes = model.state_dict()
    config.architectures = [type(model).__name__]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    chance = torch.Generator(device).manual_seed(0)
    places: dict[str, str] = {}
    for number, names in enumerate(_shards({name: tensor.numel() * 2 for name, tensor in shapes.items()})):
        file = f"model-{number:05}.safetensors"
        drawn = {name: _drawn(name, shapes[name].shape, chance).cpu() for name in names}
        save_file(drawn, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    total = sum(tensor.numel() * 2 for tensor in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _shards(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Names in order, cut where a shard would be full."""
    names: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if names and filled + size > SHARD_BYTES:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += size
    yield names


def _drawn(name: str, shape: torch.Size, chance: torch.Generator) -> torch.Tensor:
    """A weight as models are initialised: norms one, biases zero, everything else normal."""
    weight = torch.empty(shape, dtype=torch.bfloat16, device=chance.device)
    if name.endswith(".bias"):
        return weight.zero_()
    if "norm" in name:
        return weight.fill_(1.0)
    return weight.normal_(0.0, STD, generator=chance)
