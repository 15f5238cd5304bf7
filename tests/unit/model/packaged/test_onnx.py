"""Weights are read out of an ONNX file's bytes, and nameless matrices find their names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from qlmm.model.packaged import focus_vit
from qlmm.model.packaged._onnx import Graph, Node, read_graph


def protobuf(number: int, value: int | bytes) -> bytes:
    """One field on the wire."""

    def varint(rest: int) -> bytes:
        low, rest = rest & 127, rest >> 7
        return bytes([low | 128]) + varint(rest) if rest else bytes([low])

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def onnx_bytes(weights: Mapping[str, torch.Tensor], nodes: list[tuple[str, list[str], str]]) -> bytes:
    graph = b""
    for kind, inputs, output in nodes:
        body = b"".join(protobuf(1, name.encode()) for name in inputs)
        graph += protobuf(1, body + protobuf(2, output.encode()) + protobuf(4, kind.encode()))
    for name, weight in weights.items():
        dims = b"".join(protobuf(1, size) for size in weight.shape)
        raw = weight.numpy().tobytes()
        graph += protobuf(5, dims + protobuf(2, 1) + protobuf(8, name.encode()) + protobuf(9, raw))
    graph += protobuf(5, protobuf(1, 1) + protobuf(2, 7) + protobuf(8, b"shape") + protobuf(9, b"\0" * 8))
    return protobuf(1, 8) + protobuf(7, graph)


def test_onnx_weights_and_wiring_are_read(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    weight = torch.arange(200.0).reshape(20, 10)
    file.write_bytes(onnx_bytes({"w": weight}, [("MatMul", ["x", "w"], "y")]))
    graph = read_graph(file)
    assert list(graph.weights) == ["w"]
    assert torch.equal(graph.weights["w"], weight)
    assert graph.nodes == (Node("MatMul", ("x", "w"), ("y",)),)


@pytest.mark.parametrize("content", [b"", b"not a model at all", onnx_bytes({"w": torch.ones(4)}, [])[:-20]])
def test_a_file_that_is_no_onnx_model_is_told(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is not an ONNX model"):
        read_graph(file)


def test_nameless_matrices_are_found_by_their_bias_and_transposed() -> None:
    matrix, bias = torch.rand(3, 5), torch.rand(5)
    patches = (focus_vit.SIDE // focus_vit.PATCH) ** 2
    own, grid = torch.rand(1, 1, focus_vit.WIDTH), torch.rand(1, patches, focus_vit.WIDTH)
    graph = Graph(
        {"backbone.fc.bias": bias, "onnx::MatMul_1": matrix, "onnx::Concat_2": own, "onnx::Reshape_3": grid},
        (
            Node("MatMul", ("x", "onnx::MatMul_1"), ("p",)),
            Node("Add", ("backbone.fc.bias", "p"), ("y",)),
            Node("Add", ("y", "x"), ("z",)),
        ),
    )
    state = focus_vit.released_state(graph)
    assert torch.equal(state["fc.weight"], matrix.t())
    assert torch.equal(state["fc.bias"], bias)
    assert torch.equal(state["embeddings.position_embeddings"], torch.cat([own, grid], dim=1))
