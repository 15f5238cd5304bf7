"""How long the command line takes to answer, and what merge and verify compute before they read a weight of the base.

Usage: ``python -m benchmarks.startup``
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import write_result

__all__ = ["before_weights", "measure"]

RUNS = 9
# Seconds each command may take, and the command.
TARGETS: tuple[tuple[float, tuple[str, ...]], ...] = ((0.3, ("--help",)), (0.6, ("recipe", "check", "owl_lora")))
PROBE = """
import atexit, sys
atexit.register(lambda: print("torch" in sys.modules, file=sys.stderr))
from qlmm.cli.app import main
main()
"""

# The quick start's shape of adapter: packaged parts, an abstractor trained whole, LoRA in an NF4 language model.
ADAPTER = "zoo:owl_kinds"
# CPU seconds before the first weight of the base: half of what commit 5904702, where each step resolved the base anew,
# needs on the same slow two-core machine: 6.0 s to merge, 4.1 s to verify.
HALVED: dict[str, float] = {"merge": 3.0, "verify": 2.05}
UNTIL_WEIGHTS = """
import sys, tempfile, time
from pathlib import Path
import torch
from transformers import PreTrainedModel
from qlmm.artifacts.adapter import verify
from qlmm.artifacts.merge import merge
from qlmm.artifacts.zoo.find import find_adapter

class Reached(BaseException):
    pass

def reach(*_, **__):
    raise Reached

torch.set_num_threads(1)
merge.write_shards = reach
PreTrainedModel.from_pretrained = classmethod(reach)
command, adapter = sys.argv[1:]
with tempfile.TemporaryDirectory() as place:
    for _ in range(4):
        begun = time.process_time()
        try:
            if command == "verify":
                verify.verify(find_adapter(adapter))
            else:
                merge.merge(adapter, Path(place) / "x", merge.Settings())
        except Reached:
            print(time.process_time() - begun, file=sys.stderr)
"""


def before_weights(command: str, target_s: float) -> dict[str, Any]:
    """CPU seconds of a command up to the first weight of its base; the first call, which imports, is not counted."""
    words = [sys.executable, "-c", UNTIL_WEIGHTS, command, ADAPTER]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    seconds = [float(line) for line in done.stderr.splitlines() if line.replace(".", "", 1).isdigit()][1:]
    return {
        "command": f"qlmm {command} {ADAPTER}",
        "runs": len(seconds),
        "median_cpu_s": round(statistics.median(seconds), 3),
        "target_s": target_s,
        "reached": statistics.median(seconds) <= target_s,
    }


def measure(words: tuple[str, ...], target_s: float) -> dict[str, Any]:
    """Wall times of one command; the first call, which fills the file cache, is not counted."""
    command = [str(Path(sys.executable).with_name("qlmm")), *words]
    seconds = [_seconds(command) for _ in range(RUNS + 1)][1:]
    return {
        "command": " ".join(["qlmm", *words]),
        "runs": RUNS,
        "median_s": round(statistics.median(seconds), 3),
        "fastest_s": round(min(seconds), 3),
        "slowest_s": round(max(seconds), 3),
        "target_s": target_s,
        "reached": statistics.median(seconds) <= target_s,
        "imports_torch": _imports_torch(words),
    }


def _seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun


def _imports_torch(words: tuple[str, ...]) -> bool:
    done = subprocess.run([sys.executable, "-c", PROBE, *words], check=True, capture_output=True, text=True)
    return done.stderr.splitlines()[-1] == "True"


def main() -> int:
    """Measure, print a line per command, write the result; 1 when a target was missed."""
    found = [measure(words, target_s) for target_s, words in TARGETS]
    for one in found:
        torch = "imports torch" if one["imports_torch"] else "without torch"
        print(
            f"{one['command']}: {one['median_s']:.2f} s ({one['fastest_s']:.2f} to {one['slowest_s']:.2f}), "
            f"target {one['target_s']} s, {torch}"
        )
    bases = [before_weights(command, target_s) for command, target_s in HALVED.items()]
    for one in bases:
        print(f"{one['command']}: {one['median_cpu_s']:.2f} CPU s before the first weight, target {one['target_s']} s")
    write_result("startup", {"commands": found, "before_weights": bases})
    fast = all(one["reached"] for one in (*found, *bases))
    return 0 if fast and not any(one["imports_torch"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
