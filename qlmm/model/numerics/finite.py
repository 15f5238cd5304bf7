"""Which saved numbers are not finite: a NaN among weights spreads, and it hides behind finite answers.

Usage: ``if names := not_finite(folder): raise …``
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

__all__ = ["is_finite", "not_finite"]

# What an adapter and a checkpoint keep their numbers in; random states and tokenizers are left out.
_NUMBERS = ("*.safetensors", "optimizer.pt", "scheduler.pt", "scaler.pt", "trainer_state.json")


def not_finite(folder: Path) -> list[str]:
    """Names of the tensors and values below a folder that are NaN or infinite, each after its file's name."""
    paths = sorted(path for pattern in _NUMBERS for path in folder.glob(pattern))
    return [f"{path.name}: {name} is not finite" for path in paths for name in _wrong(path)]


def is_finite(value: object) -> bool:
    """Whether a tensor or a number is finite throughout; what is neither counts as finite."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    return not isinstance(value, float) or math.isfinite(value)


def _wrong(path: Path) -> Iterator[str]:
    if path.suffix == ".safetensors":
        with safe_open(str(path), framework="pt") as file:
            yield from (name for name in file.keys() if not is_finite(file.get_tensor(name)))  # noqa: SIM118  no mapping
        return
    json_file = path.suffix == ".json"
    content = json.loads(path.read_bytes()) if json_file else torch.load(path, "cpu", weights_only=True, mmap=True)
    yield from (name for name, value in _leaves(content, "") if not is_finite(value))


def _leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list | tuple):
        inner = list(enumerate(value))
    else:
        yield name, value
        return
    for key, one in inner:
        yield from _leaves(one, f"{name}.{key}" if name else str(key))
