"""Does a connector trained beside a 4-bit language model move as it would beside one in full precision?

Twenty steps at a connector's usual rate, 2e-5, on a tiny LLaVA and a tiny Owl: the same rows in the same order, so that
the arms differ in nothing but how weights are stored and computed. A weight kept in bf16 cannot take a step smaller
than half its last digit, which at this rate is most steps of most weights.

Usage: ``python -m benchmarks.movement``
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import write_result
from benchmarks.peer import plain_trl
from benchmarks.record import record_of
from benchmarks.shapes import TINY
from qlmm.cli.output.library_noise import quiet
from qlmm.model.parts.split import split
from qlmm.proof.fingerprint import Start
from qlmm.proof.records import PartProof
from qlmm.recipe.load import LoadedRecipe
from qlmm.training.plan import Plan, make_plan
from qlmm.training.run import build, train
from qlmm.training.run_dir import RunDir
from tests.runs import TinyRun

__all__ = ["ARMS", "BASES", "REFERENCE", "measure"]

STEPS = 20
RATE = 2e-5
# One rate and no warm-up in all arms, since TRL alone has one rate for all; no dropout, whose masks would differ.
SAME = (
    f"training.steps={STEPS}",
    "training.batch_size=2",
    f"training.learning_rate={RATE}",
    f"training.connector_learning_rate={RATE}",
    "training.schedule=constant",
    "training.warmup=0",
    "training.save_every=1000",
    "training.device=cpu",
    "adapter.dropout=0",
)
Recipe = Callable[..., LoadedRecipe]
Arm = Callable[[Recipe, Path], PartProof]


def _plan(recipe: Recipe, folder: Path, *overrides: str) -> Plan:
    return make_plan(recipe(*SAME, *overrides, f"output.dir={folder / 'run'}").recipe)


def _qlmm(*overrides: str) -> Arm:
    def arm(recipe: Recipe, folder: Path) -> PartProof:
        ready = _plan(recipe, folder, *overrides)
        with RunDir.open(Path(ready.recipe.output.dir), record_of(ready)) as directory:
            model, start = build(ready)
            train(ready, directory, model, lambda event: None, evaluate=lambda step: None, resume=None)
        return _connector(start.compare(model, {}))

    return arm


def _trl(recipe: Recipe, folder: Path) -> PartProof:
    """TRL alone on an NF4 base that is loaded correctly, computing in bf16, which is its default."""
    ready = _plan(recipe, folder, "base.quantize=nf4", "training.precision=bf16")
    base = ready.base.load(ready.precision, seed=0)
    parts = split(base)
    trainer = plain_trl(ready, base, steps=STEPS)
    start = Start.of(trainer.model, parts, ready.placement.asked)
    trainer.train()
    return _connector(start.compare(trainer.model, {}))


def _connector(parts: tuple[PartProof, ...]) -> PartProof:
    (found,) = (part for part in parts if part.part == "connector")
    return found


REFERENCE = "qlmm, fp32"
ARMS: dict[str, Arm] = {
    REFERENCE: _qlmm("base.quantize=none"),
    "qlmm, NF4": _qlmm("base.quantize=nf4"),
    "qlmm, NF4, bf16 compute": _qlmm("base.quantize=nf4", "training.precision=bf16"),
    "TRL alone, NF4, bf16 compute": _trl,
}


def _llava(folder: Path) -> Recipe:
    return TinyRun.make(folder).recipe


def _owl(folder: Path) -> Recipe:
    TINY.write(folder, "cpu")
    TINY.write_rows(folder, tokens=96)
    return partial(TINY.recipe, folder, "base.connector.dropout=0")


BASES: dict[str, Callable[[Path], Recipe]] = {"LLaVA, mlp": _llava, "Owl, abstractor": _owl}


def measure(base: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Per arm: tensors and share of the connector's weights that moved, the mean movement, and its ratio to fp32's.

    Args:
        base: one of ``BASES``.
        folder: an empty one, for the base, its rows and the runs.
    """
    recipe = BASES[base](folder)
    found = {name: arm(recipe, folder / f"arm-{number}") for number, (name, arm) in enumerate(ARMS.items())}
    whole = found[REFERENCE].mean_movement
    return {
        name: {
            "tensors": part.trained_tensors,
            "tensors_moved": part.moved_tensors,
            "weights": part.trained_parameters,
            "share_moved": round(part.moved_share, 4),
            "mean_movement": part.mean_movement,
            "ratio_to_fp32": round(part.mean_movement / whole, 4),
        }
        for name, part in found.items()
    }


def main() -> int:
    """Measure, print a line per arm, write the result."""
    quiet()
    torch.set_num_threads(1)  # matrices this small gain nothing by threads, and on a busy machine lose much
    found = {}
    for base in BASES:
        with tempfile.TemporaryDirectory() as folder:
            found[base] = measure(base, Path(folder))
        for name, arm in found[base].items():
            print(
                f"{base}, {name}: {arm['tensors_moved']} of {arm['tensors']} tensors and {arm['share_moved']:.1%} of "
                f"the weights moved, by {arm['mean_movement']:.2e} on average, {arm['ratio_to_fp32']:.2f} of fp32's"
            )
    write_result("movement", {"steps": STEPS, "rate": RATE, "bases": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
