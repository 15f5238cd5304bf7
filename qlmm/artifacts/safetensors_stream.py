"""Safetensors files read and written tensor by tensor, so that one tensor is in memory and never a model.

The library's own ``save_file`` wants all tensors of a file at once, and copies them. The format is simple: eight bytes
with the length of a JSON header, the header with each tensor's dtype, shape and place, then the bytes.

Usage: ``write_shards(folder, plan_shards(outputs, most=5 << 30))``
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qlmm.core.errors import ModelError

__all__ = ["DTYPES", "DTYPE_NAMES", "Output", "Reader", "Stored", "cut", "header", "write_shards"]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNED = 8


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file, known without reading it."""

    file: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor to be written.

    Attributes:
        shard: name of the source's shard, which decides the file it goes to where shards are not cut anew.
        make: gives the tensor; called once, just before it is written.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    shard: str
    make: Callable[[Reader], Tensor]

    @property
    def size(self) -> int:
        """Bytes it takes."""
        return prod(self.shape) * self.dtype.itemsize


class Reader:
    """Reads tensors of several files; only the file asked last stays open, with the pages of it that were read."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: Any = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *raised: object) -> None:
        self._path, self._file = None, None

    def read(self, stored: Stored) -> Tensor:
        """The tensor's values."""
        if self._path != stored.file:
            self._path, self._file = stored.file, safe_open(str(stored.file), framework="pt")
        tensor: Tensor = self._file.get_tensor(stored.key)
        return tensor


def header(path: Path) -> list[Stored]:
    """The tensors of a file in the order of their bytes; no weight is read.

    Raises:
        ModelError: A020 when the library refuses the file, or it has a dtype that is not known here.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            slices = ((key, file.get_slice(key)) for key in file.offset_keys())
            return [Stored(path, key, DTYPES[one.get_dtype()], tuple(one.get_shape())) for key, one in slices]
    except (OSError, SafetensorError, KeyError) as error:
        why = f"the dtype {error.args[0]} is not known" if isinstance(error, KeyError) else str(error)
        help = "fetch the base's files again"
        raise ModelError.one("A020", f"{path} cannot be read as safetensors: {why}", help=help) from error


def cut(outputs: Sequence[Output], most: int | None) -> list[list[Output]]:
    """Put tensors into files: as the source had them, or anew where a file would hold more than so many bytes."""
    shards: list[list[Output]] = []
    filled = 0
    for one in outputs:
        full = filled + one.size > most if most is not None else bool(shards) and shards[-1][0].shard != one.shard
        if not shards or full:
            shards.append([])
            filled = 0
        shards[-1].append(one)
        filled += one.size
    return shards


def write_shards(folder: Path, shards: Sequence[Sequence[Output]], tell: Callable[[str], None]) -> None:
    """Write the files under the names that transformers gives them and, where there are several, their index.

    Raises:
        OSError: when the disk refuses.
        ModelError: A021 when a tensor is not finite in the dtype it is written in.
    """
    count = len(shards)
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    if count == 1:
        names = ["model.safetensors"]
    with Reader() as reader:
        for number, (name, shard) in enumerate(zip(names, shards, strict=True), 1):
            tell(f"shard {number} of {count}")
            _write(folder / name, shard, reader)
    if count > 1:
        places = {one.name: name for name, shard in zip(names, shards, strict=True) for one in shard}
        total = sum(one.size for shard in shards for one in shard)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write(path: Path, shard: Sequence[Output], reader: Reader) -> None:
    """One file; the next tensor is made while the last one is written."""
    with path.open("xb") as file, ThreadPoolExecutor(1) as writer:
        written = writer.submit(file.write, _header(shard))
        for one in shard:
            tensor = one.make(reader)
            if tensor.shape != one.shape or tensor.dtype != one.dtype:
                raise ValueError(f"{one.name} came out as {tuple(tensor.shape)} {tensor.dtype}, not as planned")
            content = _bytes(one.name, tensor)
            written.result()
            written = writer.submit(file.write, content)
        written.result()


def _header(shard: Sequence[Output]) -> bytes:
    facts: dict[str, JsonValue] = {"__metadata__": {"format": "pt"}}
    place = 0
    for one in shard:
        offsets: list[JsonValue] = [place, place + one.size]
        facts[one.name] = {"dtype": DTYPE_NAMES[one.dtype], "shape": list(one.shape), "data_offsets": offsets}
        place += one.size
    text = json.dumps(facts, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    return struct.pack("<Q", len(text)) + text


def _bytes(name: str, tensor: Tensor) -> memoryview:
    """The tensor's bytes; what became infinite in fp16, which ends at 65,504, is refused."""
    if tensor.dtype == torch.float16 and not torch.isfinite(tensor).all():
        help = "merge with --dtype bf16, or leave --dtype out"
        raise ModelError.one("A021", f"{name} has values that fp16 cannot represent", help=help)
    flat: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)
