"""One GGUF file: written tensor by tensor through the ``gguf`` package, then read back and compared.

Usage: ``write_gguf(path, "llama", tensors, fill); found = compare(path, tensors)``
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from qlmm.core.errors import ModelError, RunError, UsageError

if TYPE_CHECKING:
    import gguf

__all__ = ["OUTTYPES", "Outtype", "Readback", "Stored", "compare", "need_gguf", "storage", "write_gguf"]

Outtype = Literal["f16", "bf16", "q8_0", "f32"]
OUTTYPES: tuple[Outtype, ...] = ("f16", "bf16", "q8_0", "f32")
Q8_BLOCK = 32
# A block's scale is its largest magnitude over 127, itself stored as a half: values are off by half a step at most.
Q8_STEP = 0.5 / 127
HALF_ROUNDING = 2.0**-11


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the file.

    Attributes:
        name: as llama.cpp calls it.
        shape: rows first, as torch has it.
        kind: how its values are stored.
        read: gives its values, in the order that llama.cpp wants.
    """

    name: str
    shape: tuple[int, ...]
    kind: Outtype
    read: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """Bytes it takes."""
        values = int(np.prod(self.shape))
        return values // Q8_BLOCK * (Q8_BLOCK + 2) if self.kind == "q8_0" else values * (4 if self.kind == "f32" else 2)


@dataclass(frozen=True, slots=True)
class Readback:
    """How a file compares with what was to be written.

    Attributes:
        tensors: how many were compared.
        rounded: how many of them are stored in blocks of 8-bit numbers.
        largest: the largest difference to the values as given, over the largest value of its tensor.
    """

    tensors: int
    rounded: int
    largest: float


def need_gguf() -> None:
    """Refuse to begin without the package that writes GGUF.

    Raises:
        UsageError: E020 with the line that installs it.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UsageError.one("E020", "GGUF files need the package gguf", help="pip install 'qlmm[gguf]'")


def storage(name: str, shape: tuple[int, ...], wanted: Outtype) -> Outtype:
    """How a tensor is stored: vectors, norms and embeddings of positions exactly, the rest as wanted where it fits."""
    if len(shape) < 2 or "norm" in name or "position_embd" in name:
        return "f32"
    if "patch_embd" in name:
        return "f16" if wanted in ("f16", "q8_0") else "f32"
    if wanted == "q8_0" and shape[-1] % Q8_BLOCK:
        return "f16"
    return wanted


def write_gguf(path: Path, arch: str, tensors: Sequence[Stored], fill: Callable[[gguf.GGUFWriter], None]) -> None:
    """Write a file; memory holds one tensor at a time.

    Args:
        path: the file, which must not be there.
        arch: what llama.cpp calls the architecture.
        tensors: what goes into it.
        fill: adds everything that is not a tensor.

    Raises:
        RunError: E021 when a weight is too large for the storage that was asked for.
    """
    import gguf

    writer = gguf.GGUFWriter(str(path), arch)
    fill(writer)
    for one in tensors:
        empty = np.dtype(np.float32 if one.kind == "f32" else np.float16)
        kind, shape = _kind(one.kind), one.shape
        if one.kind in ("bf16", "q8_0"):
            empty, shape = np.dtype(np.uint8), gguf.quant_shape_to_byte_shape(one.shape, kind)
        writer.add_tensor_info(one.name, shape, empty, one.size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for one in tensors:
        writer.write_tensor_data(_encoded(one))
    writer.close()


def _kind(name: Outtype) -> gguf.GGMLQuantizationType:
    import gguf

    return gguf.GGMLQuantizationType[name.upper()]


def _encoded(one: Stored) -> np.ndarray:
    import gguf

    values = one.read().float()
    if tuple(values.shape) != one.shape:
        raise ModelError.one("E022", f"{one.name} has shape {tuple(values.shape)}, not {one.shape}")
    if one.kind == "f16" and float(values.abs().max()) > torch.finfo(torch.float16).max:
        raise RunError.one("E021", f"{one.name} holds values too large for f16", help="choose --outtype bf16")
    encoded: np.ndarray = gguf.quants.quantize(values.contiguous().numpy(), _kind(one.kind))
    return encoded


def compare(path: Path, tensors: Sequence[Stored]) -> Readback:
    """Read a file back and hold every tensor against the values it was written from.

    Raises:
        RunError: E023 with the first tensor that is missing, too many or different.
    """
    import gguf

    found = {one.name: one for one in gguf.GGUFReader(str(path)).tensors}
    if (strange := sorted(found.keys() ^ {one.name for one in tensors})) != []:
        raise RunError.one("E023", f"{path.name}: {strange[0]} is missing or was not asked for")
    largest = 0.0
    for one in tensors:
        wanted = one.read().float()
        data = gguf.quants.dequantize(found[one.name].data, found[one.name].tensor_type)
        apart = (torch.from_numpy(np.array(data)).reshape(one.shape) - wanted).abs()
        if not bool((apart <= _allowed(wanted, one.kind)).all()):
            raise RunError.one("E023", f"{path.name}: {one.name} differs from the merged weights by {apart.max():.3g}")
        largest = max(largest, float(apart.max()) / max(float(wanted.abs().max()), 1e-30))
    return Readback(len(tensors), sum(one.kind == "q8_0" for one in tensors), largest)


def _allowed(wanted: Tensor, kind: Outtype) -> Tensor:
    """What storage alone may change, per value."""
    if kind == "q8_0":
        peak = wanted.abs().reshape(-1, Q8_BLOCK).amax(dim=1, keepdim=True)
        return (peak * (Q8_STEP + HALF_ROUNDING) * 1.01).expand(-1, Q8_BLOCK).reshape(wanted.shape)
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind]
    return (wanted.to(dtype).float() - wanted).abs()
