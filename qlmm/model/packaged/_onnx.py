"""Reading weights and wiring out of an ONNX file, without running it and without an ONNX package.

ONNX is protocol buffers; the few fields needed here (onnx.proto: ModelProto.graph 7, GraphProto.node 1 and
initializer 5, NodeProto.input 1, output 2 and op_type 4, TensorProto.dims 1, data_type 2, name 8 and raw_data 9)
are read straight from the wire format.

Usage: ``graph = read_graph(Path("model.onnx"))``
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["Graph", "Node", "read_graph"]

FLOAT32 = 1
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: its kind and the names of what it takes and gives."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """The float weights by name, and all operations in order."""

    weights: dict[str, Tensor]
    nodes: tuple[Node, ...]


def read_graph(file: Path) -> Graph:
    """Weights and operations of an ONNX file.

    Raises:
        ValueError: when the file is no such model, or cut short.
    """
    content = memoryview(file.read_bytes())
    try:
        graph = next(value for number, value in _fields(content) if number == 7 and isinstance(value, memoryview))
        parts = [(number, value) for number, value in _fields(graph) if isinstance(value, memoryview)]
    except (StopIteration, IndexError) as error:
        raise ValueError(f"{file.name} is not an ONNX model") from error
    tensors = (_tensor(value) for number, value in parts if number == 5)
    return Graph(dict(pair for pair in tensors if pair), tuple(_node(value) for number, value in parts if number == 1))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of a message, in order."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == VARINT:
            number, at = _varint(message, at)
            yield key >> 3, number
            continue
        if kind == BYTES:
            length, at = _varint(message, at)
        else:
            length = {FIXED64: 8, FIXED32: 4}.get(kind, len(message))
        if at + length > len(message):
            raise IndexError("cut short")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and the place after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _tensor(message: memoryview) -> tuple[str, Tensor] | None:
    """Name and values of a float tensor; None for the integer tables that exporters write."""
    dims: list[int] = []
    kind, name, raw = 0, "", memoryview(b"")
    for number, value in _fields(message):
        if isinstance(value, int):
            dims += [value] if number == 1 else []
            kind = value if number == 2 else kind
        elif number == 8:
            name = bytes(value).decode()
        elif number == 9:
            raw = value
    if kind != FLOAT32 or not raw:
        return None
    return name, torch.frombuffer(bytearray(raw), dtype=torch.float32).reshape(dims)


def _node(message: memoryview) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 4: []}
    for number, value in _fields(message):
        if number in texts and isinstance(value, memoryview):
            texts[number].append(bytes(value).decode())
    return Node(kind="".join(texts[4]), inputs=tuple(texts[1]), outputs=tuple(texts[2]))
