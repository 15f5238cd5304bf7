"""Safetensors files read and written tensor by tensor, so that memory holds one tensor and never a model.

The library's own ``save_file`` wants all tensors of a file at once, and copies them. The format is simple: eight bytes
with the length of a JSON header, the header with each tensor's dtype, shape and place, then the bytes.

Usage: ``write_shards(folder, plan_shards(outputs, most=5 << 30))``
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from pydantic import JsonValue
from safetensors import safe_open
from torch import Tensor

from qlmm.core.errors import ModelError

__all__ = ["DTYPES", "Output", "Reader", "Stored", "cut", "header", "write_shards"]

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
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The library itself refuses longer headers.
LONGEST_HEADER = 100_000_000
ALIGNED = 8


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: where it is, and what it is without reading it."""

    file: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor to be written: what it is, known beforehand, and how to make it.

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._path, self._file = None, None

    def read(self, stored: Stored) -> Tensor:
        """The tensor's values."""
        if self._path != stored.file:
            self._path, self._file = stored.file, safe_open(str(stored.file), framework="pt")
        tensor: Tensor = self._file.get_tensor(stored.key)
        return tensor


def header(path: Path) -> list[Stored]:
    """What a file holds, in the order of its bytes, from its header alone.

    Raises:
        ModelError: A020 when it is not a safetensors file, is cut short, holds a dtype that is not known, or says of a
            tensor what cannot all be true.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > LONGEST_HEADER:
                raise ValueError("its header is too long")
            facts: dict[str, Any] = json.loads(file.read(length))
        facts.pop("__metadata__", None)
        end = 8 + length + max((one["data_offsets"][1] for one in facts.values()), default=0)
        if path.stat().st_size != end:
            raise ValueError(f"it has {path.stat().st_size} bytes instead of {end}")
        return list(_entries(path, facts))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        why = f"a tensor has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise ModelError.one(
            "A020", f"{path} cannot be read as safetensors: {why}", help="fetch the base's files again"
        ) from error


def _entries(path: Path, facts: Mapping[str, Any]) -> Iterator[Stored]:
    """The tensors in the order of their bytes; the format allows neither gaps nor overlaps."""
    place = 0
    for key, one in sorted(facts.items(), key=lambda entry: list(entry[1]["data_offsets"])):
        name, shape, (begin, end) = one["dtype"], tuple(one["shape"]), one["data_offsets"]
        if name not in DTYPES:
            raise ValueError(f"the dtype {name} is not known")
        whole = all(isinstance(size, int) and size >= 0 for size in shape)
        if not whole or begin != place or end - begin != prod(shape) * DTYPES[name].itemsize:
            raise ValueError(f"{key} is {name} of shape {list(shape)}, which the bytes {begin} to {end} are not")
        place = end
        yield Stored(path, key, DTYPES[name], shape)


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
    """Write the files and, where there are several, their index.

    Raises:
        OSError: when the disk refuses.
        ModelError: A021 when a tensor is not finite in the dtype it is written in.
    """
    names = list(_file_names(len(shards)))
    with Reader() as reader:
        for number, (name, shard) in enumerate(zip(names, shards, strict=True), 1):
            tell(f"shard {number} of {len(shards)}")
            _write(folder / name, shard, reader)
    if len(shards) > 1:
        places = {one.name: name for name, shard in zip(names, shards, strict=True) for one in shard}
        total = sum(one.size for shard in shards for one in shard)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _file_names(count: int) -> Iterator[str]:
    """The names that transformers gives, so that every loader finds them."""
    if count == 1:
        yield "model.safetensors"
    else:
        yield from (f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1))


def _write(path: Path, shard: Sequence[Output], reader: Reader) -> None:
    """One file; the next tensor is made while the last one is written."""
    with path.open("xb") as file, ThreadPoolExecutor(1) as writer:
        written = writer.submit(file.write, _header(shard))
        for one in shard:
            tensor = one.make(reader)
            if tensor.shape != one.shape or tensor.dtype != one.dtype:
                raise ValueError(f"{one.name} came out as {tuple(tensor.shape)} {tensor.dtype}, not as planned")
            content = _bytes(_checked(one.name, tensor))
            written.result()
            written = writer.submit(file.write, content)
        written.result()


def _header(shard: Iterable[Output]) -> bytes:
    facts: dict[str, JsonValue] = {"__metadata__": {"format": "pt"}}
    place = 0
    for one in shard:
        facts[one.name] = {
            "dtype": _NAMES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [place, place + one.size],
        }
        place += one.size
    text = json.dumps(facts, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    return struct.pack("<Q", len(text)) + text


def _checked(name: str, tensor: Tensor) -> Tensor:
    """Refuse what became infinite on the way; fp16 ends at 65,504."""
    if tensor.dtype == torch.float16 and not torch.isfinite(tensor).all():
        raise ModelError.one(
            "A021", f"{name} has values that fp16 cannot hold", help="merge with --dtype bf16, or leave --dtype out"
        )
    return tensor


def _bytes(tensor: Tensor) -> memoryview:
    flat: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)
