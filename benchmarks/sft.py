"""Rows per second of supervised training: qlmm beside TRL's own trainer on the same model, batches and machine.

Rows have one picture and 16 to 400 tokens of text, so that batches have padding, as real ones have. The language model
is Llama of 8 layers and width 384, the tower CLIP of 4 layers and width 512, with 256 visual tokens a picture (mlp) or
64 (abstractor). Weights are random: speed and equality of losses do not depend on them. TRL is given qlmm's own
batches, so that only the trainers differ; precision and checkpointing are equal in a pair, and named. Every run is a
process of its own, which makes its peak memory its own. Seconds of all cores count, from the second step on.

Usage: ``python -m benchmarks.sft``  (about 20 minutes on two cores; ``--tiny`` for a try)
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image

from benchmarks.clock import Timed
from benchmarks.machine import write_result
from benchmarks.peer import plain_trl
from benchmarks.record import record_of
from benchmarks.shapes import PICTURE, TINY, Shape
from qlmm.cli.output.library_noise import quiet
from qlmm.model.reuse.supervised_head import SupervisedHead
from qlmm.recipe.load import parse_recipe
from qlmm.training.plan import Plan, make_plan
from qlmm.training.run import build
from qlmm.training.run_dir import RunDir

BATCH = 8
S = Shape(
    layers=8,
    width=384,
    vocabulary=12_288,
    vision={"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8},
)
CONNECTORS = {256: "{kind: mlp}", 64: "{kind: abstractor, queries: 64, layers: 2, heads: 8, inner: 512}"}
RECIPE = """
version: 1
base:
  vision: {folder}/vision
  connector: {connector}
  language: {folder}/language
  chat_template: vicuna
  quantize: none
adapter: {{r: 16, dropout: 0.0}}
data:
  sources: [{{path: {folder}/rows.jsonl}}]
training:
  steps: {steps}
  batch_size: {batch}
  learning_rate: 1e-4
  connector_learning_rate: 1e-4
  schedule: constant
  warmup: 0
  precision: {precision}
  gradient_checkpointing: {checkpointing}
  packing: {packing}
  reuse: []
  log_every: 1
  save_every: 100000
evaluation: {{sources: [{{path: {folder}/held-out.jsonl}}], rows: 1, every: 100000, answers: 0}}
output: {{dir: {folder}/run-{name}}}
"""


@dataclass(frozen=True)
class Pair:
    """Settings that are equal for both trainers."""

    visual: int
    precision: str
    checkpointing: bool

    @property
    def name(self) -> str:
        """What a result calls it."""
        kept = "checkpointing" if self.checkpointing else "no checkpointing"
        return f"{self.visual} visual tokens, {self.precision}, {kept}"


PAIRS = (Pair(256, "fp32", False), Pair(256, "fp32", True), Pair(256, "bf16", False), Pair(64, "fp32", False))
# Of the first pair, each lever alone too.
ARMS = ("trl", "qlmm", "packing", "head", "neither")


def write_rows(folder: Path, count: int) -> None:
    """Rows about noise pictures, with questions and answers of very different lengths; one more is held out."""
    chance = random.Random(0)
    words = ["".join(chance.choices(string.ascii_lowercase, k=2)) for _ in range(200)]
    lines = []
    for number in range(count + 1):
        Image.frombytes("RGB", (PICTURE, PICTURE), chance.randbytes(3 * PICTURE**2)).save(folder / f"{number}.png")
        asked, said = (" ".join(chance.choices(words, k=chance.randint(8, 200))) for _ in range(2))
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        lines.append(json.dumps({"messages": turns, "images": [f"{number}.png"]}))
    (folder / "rows.jsonl").write_text("\n".join(lines[:count]), encoding="utf-8")
    (folder / "held-out.jsonl").write_text(lines[count], encoding="utf-8")


def plan_of(folder: Path, pair: Pair, arm: str, steps: int) -> Plan:
    """A run of one pair."""
    text = RECIPE.format(
        folder=folder,
        name=arm,
        steps=steps,
        batch=BATCH,
        connector=CONNECTORS[pair.visual],
        precision=pair.precision,
        checkpointing=str(pair.checkpointing).lower(),
        packing=str(arm in ("qlmm", "packing")).lower(),
    )
    return make_plan(parse_recipe(text, "benchmark.yaml", []).recipe)


@contextmanager
def head(arm: str) -> Iterator[None]:
    """TRL's head as it is, at every position, for the arms without ours."""
    whole: Callable[[Any, Any], Any] = lambda self, model: model  # noqa: E731  # a method's stand-in
    if arm in ("qlmm", "head"):
        yield
    else:
        with mock.patch.object(SupervisedHead, "of", whole):
            yield


def run(folder: Path, pair: Pair, arm: str, steps: int) -> dict[str, Any]:
    """One run, in this process."""
    ready = plan_of(folder, pair, arm, steps)
    timed = Timed()
    if arm == "trl":
        base = ready.base.load(ready.precision, seed=ready.recipe.training.seed)
        trainer = plain_trl(ready, base, steps=steps)
        trainer.add_callback(timed)
        trainer.train()
    else:
        model, start = build(ready)
        record = record_of(ready).model_copy(update={"frozen_sha256": start.base_sha256})
        with head(arm), RunDir.open(Path(ready.recipe.output.dir), record) as directory:
            ours = ready.objective.trainer()(model, ready, callbacks=[timed])
            ours.prepare(directory)
            ours.train()
    return {
        "core_s_per_step": round((timed.worked[-1] - timed.worked[1]) / (steps - 1), 3),
        "s_per_step": round((timed.ends[-1] - timed.ends[1]) / (steps - 1), 3),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "losses": [round(loss, 6) for loss in timed.losses],
    }


def measure(folder: Path, *, steps: int, tiny: bool) -> dict[str, Any]:
    """Every pair in turn, TRL before and after qlmm."""
    (TINY if tiny else S).write(folder, "cpu")
    write_rows(folder, steps * BATCH)
    found: dict[str, Any] = {}
    for pair in PAIRS:
        arms = (*ARMS, "trl again") if pair == PAIRS[0] else ("trl", "qlmm", "trl again")
        runs = {arm: _child(folder, pair, arm.removesuffix(" again"), steps) for arm in arms}
        found[pair.name] = summary(runs)
        print(pair.name, {name: value for name, value in found[pair.name].items() if name != "runs"}, flush=True)
    return found


def _child(folder: Path, pair: Pair, arm: str, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        words = ["--folder", str(folder), "--arm", arm, "--pair", str(PAIRS.index(pair)), "--steps", str(steps)]
        command = [sys.executable, "-m", "benchmarks.sft", *words, "--into", f"{out}/found.json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(Path(out, "found.json").read_text(encoding="utf-8"))
    return found


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """The ratios, and everything they were made from."""
    trl = [runs["trl"], runs["trl again"]]
    work, peak = (sum(one[figure] for one in trl) / 2 for figure in ("core_s_per_step", "peak_rss_bytes"))
    gaps = [abs(one - other) for one, other in zip(runs["qlmm"]["losses"], trl[0]["losses"], strict=True)]
    alone = {arm: round(runs["neither"]["core_s_per_step"] / runs[arm]["core_s_per_step"], 2)
             for arm in ("packing", "head") if arm in runs}  # fmt: skip
    return {
        "qlmm_to_trl": round(work / runs["qlmm"]["core_s_per_step"], 2),
        "trl_spread": round(max(one["core_s_per_step"] for one in trl) / min(one["core_s_per_step"] for one in trl), 2),
        "peak_rss_to_trl": round(runs["qlmm"]["peak_rss_bytes"] / peak, 2),
        "largest_difference_of_losses": max(gaps),
        **({"each_lever_to_neither": alone} if alone else {}),
        "runs": runs,
    }


def main() -> None:
    """Measure, print the ratios and write the result down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a model of two layers; nothing is written down")
    parser.add_argument("--steps", type=int, default=4)
    for name in ("folder", "arm", "pair", "into"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    quiet()
    if asked.arm:
        found = run(Path(asked.folder), PAIRS[int(asked.pair)], asked.arm, asked.steps)
        Path(asked.into).write_text(json.dumps(found), encoding="utf-8")
        return
    if torch.cuda.is_available():
        sys.exit("benchmarks.gpu measures on a GPU")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), steps=asked.steps, tiny=asked.tiny)
    if not asked.tiny:
        print(f"written: {write_result('sft', result).name}")


if __name__ == "__main__":
    main()
