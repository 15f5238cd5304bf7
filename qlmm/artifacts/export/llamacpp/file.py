"""One GGUF file: planned by names, written tensor by tensor through the ``gguf`` package, read back and compared.

Usage: ``tensors = planned.write(path, model); largest = compare(path, tensors)``
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from qlmm.core.errors import ModelError, RunError, UsageError

if TYPE_CHECKING:
    import gguf

__all__ = ["OUTTYPES", "GgufFile", "Outtype", "Stored", "compare", "need_gguf", "storage"]

Outtype = Literal["f16", "bf16", "q8_0", "f32"]
OUTTYPES: tuple[Outtype, ...] = get_args(Outtype)
Q8_BLOCK = 32
# A block's scale is its largest magnitude over 127, itself stored as a half: values are off by half a step at most.
Q8_STEP = 0.5 / 127
HALF_ROUNDING = 2.0**-11


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the file: llama.cpp's name, torch's shape, and its values in the order that llama.cpp wants."""

    name: str
    shape: tuple[int, ...]
    kind: Outtype
    read: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        values = prod(self.shape)
        return values // Q8_BLOCK * (Q8_BLOCK + 2) if self.kind == "q8_0" else values * (4 if self.kind == "f32" else 2)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A file, planned before any weight is read.

    Attributes:
        names: llama.cpp's name of each weight, by the model's name.
        fill: writes the settings that belong to the model.
        drops: what llama.cpp does otherwise, a sentence each.
        reordered: for weights whose rows llama.cpp wants in another order.
        computed: tensors that are not weights of the model.
    """

    architecture: str
    outtype: Outtype
    names: Mapping[str, str]
    fill: Callable[[gguf.GGUFWriter], None]
    drops: tuple[str, ...] = ()
    reordered: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    computed: tuple[Stored, ...] = ()

    def tensors(self, model: nn.Module) -> list[Stored]:
        """What goes into the file, from a model with its weights, or without them to plan."""
        weights = model.state_dict()
        return [*(self._stored(ours, name, weights[ours]) for ours, name in self.names.items()), *self.computed]

    def _stored(self, ours: str, name: str, weight: Tensor) -> Stored:
        shape, reorder = tuple(weight.shape), self.reordered.get(ours)
        kind = storage(name, shape, self.outtype)
        return Stored(name, shape, kind, lambda: weight if reorder is None else reorder(weight))

    def write(self, path: Path, model: nn.Module) -> list[Stored]:
        """Write the file with one tensor in memory at a time; the tensors in it, to compare.

        Raises:
            RunError: E021 when a weight is too large for its storage.
        """
        import gguf

        tensors, kind_of = self.tensors(model), gguf.GGMLQuantizationType
        writer = gguf.GGUFWriter(str(path), self.architecture)
        most = f"{'ALL' if self.outtype == 'f32' else 'MOSTLY'}_{self.outtype.upper()}"
        writer.add_file_type(gguf.LlamaFileType[most])
        self.fill(writer)
        for one in tensors:
            # The kind decides. With the dtype of bytes the shape would be taken for one of bytes too.
            kind, dtype = kind_of[one.kind.upper()], np.dtype(np.float32)
            writer.add_tensor_info(one.name, one.shape, dtype, one.size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for one in tensors:
            writer.write_tensor_data(gguf.quants.quantize(_values(one), kind_of[one.kind.upper()]))
        writer.close()
        return tensors


def need_gguf() -> None:
    """Raise E020 where the package that writes GGUF is not installed."""
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


def _values(one: Stored) -> np.ndarray:
    values = one.read().float()
    if tuple(values.shape) != one.shape:
        raise ModelError.one("E022", f"{one.name} has shape {tuple(values.shape)}, not {one.shape}")
    if one.kind == "f16" and float(values.abs().max()) > torch.finfo(torch.float16).max:
        raise RunError.one("E021", f"{one.name} has values too large for f16", help="choose --outtype bf16")
    return values.contiguous().numpy()


def compare(path: Path, tensors: Sequence[Stored]) -> float:
    """Read a file back; the largest difference to a value as given, over the largest value of its tensor.

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
    return largest


def _allowed(wanted: Tensor, kind: Outtype) -> Tensor:
    """How far storage alone may change each value."""
    if kind == "q8_0":
        peak = wanted.abs().reshape(-1, Q8_BLOCK).amax(dim=1, keepdim=True)
        return (peak * (Q8_STEP + HALF_ROUNDING) * 1.01).expand(-1, Q8_BLOCK).reshape(wanted.shape)
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind]
    return (wanted.to(dtype).float() - wanted).abs()
