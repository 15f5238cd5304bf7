"""Does a connector trained beside a 4-bit language model move as it would beside one in full precision?

Twenty steps at a connector's usual rate, 2e-5, on a tiny LLaVA: the same rows in the same order, so that the arms differ
in nothing but how weights are stored and computed. A weight kept in bf16 cannot take a step smaller than half
its last digit, which at this rate is most steps of most weights.

Usage: ``python -m benchmarks.movement``
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import write_result
from benchmarks.peer import plain_trl
from qlmm.model.base import load_model
from qlmm.model.parts import split
from qlmm.training.facts import PartProof
from qlmm.training.fingerprint import Start
from qlmm.training.plan import Plan, make_plan
from qlmm.training.run import build, train
from qlmm.training.run_dir import RunDir
from tests.runs import TinyRun

__all__ = ["ARMS", "REFERENCE", "measure"]

STEPS = 20
RATE = 2e-5
# One rate and no warm-up in all arms, since TRL alone has one rate for everything; no dropout, whose masks would differ.
SAME = (
    f"training.steps={STEPS}",
    f"training.learning_rate={RATE}",
    f"training.connector_learning_rate={RATE}",
    "training.schedule=constant",
    "training.warmup=0",
    "training.save_every=1000",
    "training.device=cpu",
    "adapter.dropout=0",
)
Arm = Callable[[TinyRun, Path], PartProof]


def _plan(run: TinyRun, folder: Path, *overrides: str) -> Plan:
    return make_plan(run.recipe(*SAME, *overrides, f"output.dir={folder / 'run'}").recipe)


def _qlmm(*overrides: str) -> Arm:
    def arm(run: TinyRun, folder: Path) -> PartProof:
        ready = _plan(run, folder, *overrides)
        with RunDir.open(Path(ready.recipe.output.dir), {}) as directory:
            model, start = build(ready)
            train(ready, directory, model, start, lambda event: None, evaluate=None, resume=None)
        return _connector(start.compare(model, {}))

    return arm


def _trl(run: TinyRun, folder: Path) -> PartProof:
    """TRL alone on an NF4 base that is loaded correctly, computing in bf16, which is its default."""
    ready = _plan(run, folder, "base.quantize=nf4", "training.precision=bf16")
    base = load_model(ready.recipe.base, ready.precision, seed=0)
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


def measure(run: TinyRun, folder: Path) -> dict[str, dict[str, Any]]:
    """Per arm: tensors and share of the connector's weights that moved, the mean movement, and its ratio to fp32's.

    Args:
        run: the tiny base and its rows.
        folder: where runs may be written.
    """
    found = {}
    for number, (name, arm) in enumerate(ARMS.items()):
        found[name] = arm(run, folder / str(number))
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
    with tempfile.TemporaryDirectory() as folder:
        arms = measure(TinyRun.make(Path(folder)), Path(folder) / "arms")
    for name, arm in arms.items():
        print(
            f"{name}: {arm['tensors_moved']} of {arm['tensors']} tensors and {arm['share_moved']:.1%} of the weights "
            f"moved, by {arm['mean_movement']:.2e} on average, {arm['ratio_to_fp32']:.2f} of fp32's"
        )
    write_result("movement", {"steps": STEPS, "rate": RATE, "base": "LLaVA of random weights, 2 layers", "arms": arms})
    return 0


if __name__ == "__main__":
    sys.exit(main())
