"""What a figure was measured on, and where it is written down.

Usage: ``write_result("startup", {"help_s": 0.12})`` writes ``benchmarks/results/startup-cpu.json``
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from qlmm.core.files import atomic_write

__all__ = ["RESULTS", "machine", "write_result"]

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
CPU_INFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """What decides a figure: processor, memory, GPU and versions; nothing that names the machine or its owner."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": _gpu(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def write_result(name: str, result: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write a result beside the machine it was measured on; an earlier one of the same kind of machine is replaced.

    Args:
        name: the benchmark's name.
        result: its figures, as plain JSON values.
        folder: where results are kept.

    Returns:
        The file, ``<name>-<cpu or the GPU's name>.json``.
    """
    here = machine()
    where = re.sub(r"[^a-z0-9]+", "-", here["gpu"]["name"].lower()).strip("-") if here["gpu"] else "cpu"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{where}.json"
    atomic_write(path, json.dumps({"machine": here, "result": dict(result)}, indent=1, ensure_ascii=False) + "\n")
    return path


def _processor() -> str:
    """The processor's name; Python itself knows only its architecture on Linux."""
    names = re.findall(r"^model name\s*:\s*(.+)$", CPU_INFO.read_text(), re.MULTILINE) if CPU_INFO.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def _gpu() -> dict[str, Any] | None:
    """Name and memory of the first CUDA GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {"name": properties.name, "memory_bytes": properties.total_memory}
