"""How long the command line takes to answer, from the start of the process to its end.

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

__all__ = ["measure"]

RUNS = 9
# Seconds each command may take, and the command.
TARGETS: tuple[tuple[float, tuple[str, ...]], ...] = ((0.3, ("--help",)), (0.6, ("recipe", "check", "owl_lora")))
PROBE = """
import atexit, sys
atexit.register(lambda: print("torch" in sys.modules, file=sys.stderr))
from qlmm.cli.app import main
main()
"""


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
    write_result("startup", {"commands": found})
    return 0 if all(one["reached"] and not one["imports_torch"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
