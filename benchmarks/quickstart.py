"""What the quick start reaches: held-out loss with the right and with shuffled pictures, and the time it took.

Usage: ``python -m benchmarks.quickstart [runs/quickstart]`` after ``make quickstart``; writes benchmarks/results/
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import write_result
from qlmm.core.events import Finished, StepDone
from qlmm.training.logbook import read_metrics

TARGET_NATS = 0.5


def measure(run: Path) -> dict[str, Any]:
    """The figures of a finished run, from what it wrote down itself."""
    record = json.loads((run / "run.json").read_text("utf-8"))
    metrics = read_metrics(run / "metrics.jsonl")
    steps = [event for event in metrics if isinstance(event, StepDone)]
    after = record["proof"]["after"]
    answers = record["answers"]
    return {
        "steps": steps[-1].total,
        "seconds": round(next(event.seconds for event in metrics if isinstance(event, Finished))),
        "peak_memory_bytes": max(event.memory_bytes for event in steps),
        "before": record["proof"]["before"],
        "after": after,
        "gap_nats": round(after["shuffled"] - after["right"], 3),
        "target_nats": TARGET_NATS,
        "answers_right": sum(said["after"].strip() == said["expected"].strip() for said in answers),
        "answers": len(answers),
        "promises_kept": sum(promise["kept"] for promise in record["proof"]["promises"]),
    }


def main(arguments: list[str]) -> int:
    """Print and write the figures; 1 when the target is missed."""
    found = measure(Path(arguments[0] if arguments else "runs/quickstart"))
    path = write_result("quickstart", found)
    print(f"gap {found['gap_nats']} nats (target {TARGET_NATS}), {found['seconds']} s, written to {path}")
    return 0 if found["gap_nats"] >= TARGET_NATS else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
