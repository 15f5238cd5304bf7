"""The forecast of a step's memory beside what a process really took, on the CPU at three shapes.

Each shape is trained in a process of its own, by the recipe `owl_lora` with random weights. What a process has before
its model is loaded are its libraries; the rest of its peak is weights, their training state, and activations. That is
measured while the C library gives freed memory back at once, and again as it is: it then keeps some of it.

Usage: ``python -m benchmarks.forecast`` on Linux; writes benchmarks/results/forecast-cpu.json
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import write_result

__all__ = ["SHAPES", "measure"]

STEPS = 2
STATUS, REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TARGET = 0.1
# Blocks of 64 KiB and more are given back to the system when they are freed.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536"}
# Name: layers and width of the language model, tokens of a row, and overrides.
SHAPES: dict[str, tuple[int, int, int, tuple[str, ...]]] = {
    "NF4, every layer checkpointed": (8, 512, 512, ("training.batch_size=7",)),
    "NF4, nothing checkpointed": (6, 512, 256, ("training.batch_size=8", "training.gradient_checkpointing=false")),
    "fp32, LoRA on all layers": (
        3,
        512,
        256,
        (
            "training.batch_size=6",
            "training.gradient_checkpointing=false",
            "base.quantize=none",
            "adapter.targets=[all-linear]",
        ),
    ),
}


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Bytes of this process before and during the steps of one shape, and what was forecast.

    Args:
        name: one of ``SHAPES``.
        folder: an empty one, for the base, its rows and the run.
    """
    from benchmarks.record import record_of
    from benchmarks.shapes import TINY
    from qlmm.core.events import Event, StepDone
    from qlmm.training.plan import make_plan
    from qlmm.training.run import build, train
    from qlmm.training.run_dir import RunDir

    layers, width, tokens, words = SHAPES[name]
    shape = replace(TINY, layers=layers, width=width, vocabulary=4_000)
    ready = make_plan(shape.recipe(folder, *words, *_common(tokens)).recipe)
    ready.objective.trainer()
    before = _resident("VmRSS")

    def listen(event: Event) -> None:
        # What loading and the trial of the longest rows took is not a step's.
        if isinstance(event, StepDone) and event.step == 1:
            REFS.write_text("5")

    model, _ = build(ready)
    with RunDir.open(Path(ready.recipe.output.dir), record_of(ready)) as directory:
        train(ready, directory, model, listen, evaluate=lambda step: None, resume=None)
    peak, parts = _resident("VmHWM"), ready.facts.memory_breakdown
    forecast = sum(size for part, size in parts.items() if part != "libraries")
    return {
        "layers": layers,
        "width": width,
        "tokens": ready.facts.tokens.max,
        "libraries_bytes": before,
        "peak_bytes": peak,
        "step_bytes": peak - before,
        "forecast_libraries_bytes": parts["libraries"],
        "forecast_step_bytes": forecast,
        "ratio": round(forecast / (peak - before), 3),
        "forecast_breakdown": parts,
    }


def _common(tokens: int) -> list[str]:
    return [f"data.max_length={tokens}", f"training.steps={STEPS}", "training.device=cpu", "adapter.connector=frozen"]


def _resident(field: str) -> int:
    """A figure of this process's memory, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found is not None else 0


def _child(name: str, folder: str) -> None:
    """Measure one shape, whose parts and rows are there, and print it."""
    import torch

    from qlmm.cli.output.library_noise import quiet

    quiet()
    torch.set_num_threads(1)
    print(json.dumps(measure(name, Path(folder))))


def _written(name: str, folder: Path) -> None:
    """Write the parts and the rows of one shape, which takes memory that is not the run's."""
    from benchmarks.shapes import TINY

    layers, width, tokens, _ = SHAPES[name]
    shape = replace(TINY, layers=layers, width=width, vocabulary=4_000)
    shape.write(folder, "cpu")
    shape.write_rows(folder, tokens=tokens)


def _measured(name: str, folder: str, environment: dict[str, str]) -> dict[str, Any]:
    """What a process of its own measures."""
    command = [sys.executable, "-m", "benchmarks.forecast", name, folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    shutil.rmtree(Path(folder) / "run")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: list[str]) -> int:
    """Measure every shape, print a line for each, write the result; 1 when a forecast is off by more than a tenth."""
    if not REFS.exists():
        print("forecast: this benchmark reads /proc, which Linux has", file=sys.stderr)
        return 2
    if arguments:
        _child(*arguments)
        return 0
    found = {}
    for name in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            _written(name, Path(folder))
            found[name] = one = _measured(name, folder, EXACT)
            one["peak_as_it_is_bytes"] = _measured(name, folder, {})["peak_bytes"]
        whole = one["forecast_step_bytes"] + one["forecast_libraries_bytes"]
        print(
            f"{name}: {one['step_bytes'] / 2**20:.0f} MiB, forecast {one['forecast_step_bytes'] / 2**20:.0f} "
            f"({one['ratio']:.2f}); libraries {one['libraries_bytes'] / 2**20:.0f} MiB; the whole process "
            f"{one['peak_as_it_is_bytes'] / 2**20:.0f} MiB, forecast {whole / 2**20:.0f}"
        )
    write_result("forecast", {"steps": STEPS, "target": TARGET, "shapes": found})
    return 0 if all(abs(one["ratio"] - 1) <= TARGET for one in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
