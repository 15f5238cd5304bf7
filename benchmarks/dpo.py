"""Pairs per second: qlmm's preference training beside TRL's own trainer, on the same model, rows and machine.

The model has SmolVLM-256M's proportions (a ViT-B tower, a language model of 135M parameters) with 256 visual tokens
for a picture; answers have 30 to 60 tokens. Weights are random: speed and equality of losses do not depend on them.
TRL runs as its documentation says: its own collator, raw pictures, LoRA and the connector in `modules_to_save`. Each of
qlmm's switches is measured alone too, against qlmm with none of them.

Usage: ``python -m benchmarks.dpo``  (about 22 minutes on two cores; ``--tiny`` for a try)
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import string
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.clock import Timed
from benchmarks.machine import write_result
from benchmarks.record import record_of
from benchmarks.shapes import PICTURE, TINY, Shape
from qlmm.cli.output.library_noise import quiet
from qlmm.data.media.images import decode
from qlmm.data.sample import Preference
from qlmm.model.peft.adapter import lora_config
from qlmm.recipe.load import parse_recipe
from qlmm.training.plan import Plan, make_plan
from qlmm.training.run import build
from qlmm.training.run_dir import RunDir

EPOCHS = 3  # TRL's default
SMALL_VLM = Shape(
    layers=30,
    width=576,
    vocabulary=49_152,
    vision={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
)
SWITCHES = ("prefix", "reference", "vision")
RECIPE = """
version: 1
base:
  vision: {folder}/vision
  connector: {{kind: mlp}}
  language: {folder}/language
  chat_template: vicuna
  quantize: none
adapter: {{r: 16, dropout: 0.0}}
data:
  sources: [{{path: {folder}/pairs.jsonl}}]
training:
  objective: dpo
  epochs: {epochs}
  batch_size: 2
  learning_rate: 1e-4
  connector_learning_rate: 1e-4
  schedule: constant
  warmup: 0
  precision: {precision}
  log_every: 1
  save_every: 100000
evaluation: {{sources: [{{path: {folder}/held-out.jsonl}}], rows: 1, every: 100000, answers: 0}}
output: {{dir: {folder}/run}}
"""


def figures(timed: Timed, pairs: int) -> dict[str, Any]:
    """Pairs per second of all steps, and of those of the first and the further epochs."""
    seconds = [end - begun for begun, end in pairwise(timed.ends)]
    epoch = len(seconds) // EPOCHS
    return {
        "pairs_per_s": round(pairs * len(seconds) / sum(seconds), 4),
        "first_epoch_pairs_per_s": round(pairs / statistics.median(seconds[:epoch]), 4),
        "later_pairs_per_s": round(pairs / statistics.median(seconds[epoch:]), 4),
        "before_first_step_s": round(timed.ends[0] - timed.made, 2),
        "core_s_per_pair": round((timed.worked[-1] - timed.worked[0]) / (pairs * len(seconds)), 3),
        "losses": [round(loss, 6) for loss in timed.losses],
    }


class _Trl(DPOTrainer):
    """TRL's trainer as it is; only the order of rows is given, and nothing is sent anywhere."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def _send_telemetry(self) -> None:
        """Benchmarks run without a network."""


def write_pairs(folder: Path, count: int) -> None:
    """Pairs about noise pictures, with answers of 30 to 60 words, each of them one token; one more is held out."""
    chance = random.Random(0)
    words = ["".join(chance.choices(string.ascii_lowercase, k=2)) for _ in range(200)]
    lines = []
    for number in range(count + 1):
        Image.frombytes("RGB", (PICTURE, PICTURE), chance.randbytes(3 * PICTURE**2)).save(folder / f"{number}.png")
        said = [" ".join(chance.choices(words, k=chance.randint(30, 60))) for _ in range(2)]
        question = "<image>" + " ".join(chance.choices(words, k=12))
        row = {"prompt": question, "chosen": said[0], "rejected": said[1], "images": [f"{number}.png"]}
        lines.append(json.dumps(row))
    (folder / "pairs.jsonl").write_text("\n".join(lines[:count]), encoding="utf-8")
    (folder / "held-out.jsonl").write_text(lines[count], encoding="utf-8")


def plan_of(folder: Path, name: str, reuse: Sequence[str], precision: str) -> Plan:
    """A run of the benchmark with some of the switches on."""
    text = RECIPE.format(folder=folder, epochs=EPOCHS, precision=precision)
    overrides = [f"training.reuse=[{', '.join(reuse)}]", f"output.dir={folder}/run-{name}"]
    return make_plan(parse_recipe(text, "benchmark.yaml", overrides).recipe)


def run_qlmm(ready: Plan) -> Timed:
    """A qlmm run without its checkpoints and its measuring before and after."""
    model, start = build(ready)
    path = Path(ready.recipe.output.dir)
    record = record_of(ready)
    with RunDir.open(path, record.model_copy(update={"frozen_sha256": start.base_sha256})) as run:
        timed = Timed()
        trainer = ready.objective.trainer()(model, ready, callbacks=[timed])
        trainer.prepare(run)
        trainer.train()
        trainer.finish()
    return timed


def run_trl(ready: Plan) -> Timed:
    """TRL's trainer on raw rows, with the same base, adapter and order of rows."""
    ours, _ = build(ready)
    values = {name: value.detach().clone() for name, value in ours.named_parameters() if value.requires_grad}
    del ours
    base = ready.base.load(ready.precision, seed=ready.recipe.training.seed)
    timed = Timed()
    trainer = _trl(ready, base, timed)
    own = dict(trainer.model.named_parameters())
    for name, value in values.items():
        own[name].data.copy_(value)
    trainer.train()
    return timed


def _trl(ready: Plan, base: Any, timed: Timed) -> DPOTrainer:
    training = ready.recipe.training
    args = DPOConfig(
        output_dir=str(Path(ready.recipe.output.dir).with_name("trl")),
        per_device_train_batch_size=training.batch_size,
        max_steps=ready.facts.steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type="constant",
        bf16=ready.precision.name == "bf16",
        use_cpu=ready.precision.device == "cpu",
        seed=training.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        max_length=None,
    )
    trainer = _Trl(
        model=base,
        args=args,
        train_dataset=Dataset.from_list([_raw(ready.train[row]) for row in _order(ready)]),
        processing_class=ready.encoder.processor,
        peft_config=lora_config(ready.placement, ready.recipe.adapter),
        callbacks=[timed],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _order(ready: Plan) -> list[int]:
    sampler = ready.order()
    seen: list[int] = []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        seen += list(sampler)
    return seen


def _raw(row: Any) -> dict[str, Any]:
    """A pair as TRL's documentation writes one."""
    if not isinstance(row, Preference):
        raise TypeError("rows of this benchmark are pairs")
    return {
        "images": [decode(image) for image in row.images],
        "prompt": [{"role": "user", "content": row.prompt[-1].text.strip()}],
        "chosen": [{"role": "assistant", "content": row.chosen}],
        "rejected": [{"role": "assistant", "content": row.rejected}],
    }


def measure(folder: Path, shape: Shape, pairs: int, device: str) -> dict[str, Any]:
    """Every variant in turn, TRL first and last."""
    shape.write(folder, device)
    write_pairs(folder, pairs)
    precision = "bf16" if device == "cuda" else "fp32"
    variants = {"all": SWITCHES, "none": (), **{name: (name,) for name in SWITCHES}}
    found: dict[str, Any] = {}
    ready = plan_of(folder, "plain", (), precision)
    size = ready.recipe.training.batch_size
    if len(ready.train) != pairs or pairs % size:
        # A short last batch would be counted as a whole one, and TRL, given all epochs in one, would have none.
        raise ValueError(f"{len(ready.train)} pairs in batches of {size} do not come out even")
    found["trl"] = figures(run_trl(ready), size)
    print("trl", found["trl"]["pairs_per_s"], flush=True)
    for name, reuse in variants.items():
        found[name] = figures(run_qlmm(plan_of(folder, name, reuse, precision)), size)
        print(name, found[name]["pairs_per_s"], flush=True)
    found["trl_again"] = figures(run_trl(ready), size)
    return summary(found, ready, pairs)


def summary(found: dict[str, Any], ready: Plan, pairs: int) -> dict[str, Any]:
    """The ratios, and everything they were made from."""
    twice = [found["trl"], found["trl_again"]]

    def faster(figure: str) -> float:
        """How many times TRL's rate qlmm's is."""
        return round(found["all"][figure] / statistics.mean(one[figure] for one in twice), 2)

    plain = found["none"]["pairs_per_s"]
    work = statistics.mean(one["core_s_per_pair"] for one in twice)
    gaps = [abs(one - other) for one, other in zip(found["all"]["losses"], found["trl"]["losses"], strict=True)]
    return {
        "qlmm_to_trl": faster("pairs_per_s"),
        "qlmm_to_trl_first_epoch": faster("first_epoch_pairs_per_s"),
        "qlmm_to_trl_later_epochs": faster("later_pairs_per_s"),
        "qlmm_to_trl_in_core_seconds": round(work / found["all"]["core_s_per_pair"], 2),
        "each_switch_to_none": {name: round(found[name]["pairs_per_s"] / plain, 2) for name in SWITCHES},
        "none_to_trl": round(plain / statistics.mean(one["pairs_per_s"] for one in twice), 2),
        "largest_difference_of_losses": max(gaps),
        "pairs": pairs,
        "epochs": EPOCHS,
        "batch_size": ready.recipe.training.batch_size,
        "precision": ready.precision.name,
        "runs": found,
    }


def main() -> None:
    """Measure, print the ratios and write the result down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a model of two layers; nothing is written down")
    parser.add_argument("--pairs", type=int, default=6)
    asked = parser.parse_args()
    quiet()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), TINY if asked.tiny else SMALL_VLM, asked.pairs, device)
    print(json.dumps({name: value for name, value in result.items() if name != "runs"}, indent=1))
    if not asked.tiny:
        print(f"written: {write_result('dpo', result).name}")


if __name__ == "__main__":
    main()
