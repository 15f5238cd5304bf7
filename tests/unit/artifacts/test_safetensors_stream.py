"""Files written tensor by tensor are what the library itself would have written and reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qlmm.artifacts.safetensors_stream import DTYPES, Output, Reader, cut, header, write_shards
from qlmm.core.errors import ModelError


def output(name: str, tensor: Tensor, shard: str = "a") -> Output:
    return Output(name, tensor.dtype, tuple(tensor.shape), shard, lambda reader: tensor)


def written(folder: Path, outputs: list[Output], most: int | None = None) -> dict[str, Tensor]:
    write_shards(folder, cut(outputs, most), lambda line: None)
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


TENSORS = {
    "matrix": torch.arange(12.0).reshape(3, 4),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "flag": torch.tensor([True, False]),
    "number": torch.tensor(7),
    "nothing": torch.empty(0, 3),
    "turned": torch.arange(6.0).reshape(2, 3).t(),
}


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    found = written(tmp_path, [output(name, tensor) for name, tensor in TENSORS.items()])
    assert found.keys() == TENSORS.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_header_says_what_the_library_wrote(tmp_path: Path) -> None:
    plain = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(plain, tmp_path / "x.safetensors", metadata={"format": "pt"})
    stored = header(tmp_path / "x.safetensors")
    assert {one.key: (one.dtype, one.shape) for one in stored} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()
    }
    with Reader() as reader:
        assert all(torch.equal(reader.read(one), plain[one.key]) for one in stored)


def test_every_dtype_of_the_format_can_be_written(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(3).to(dtype) for name, dtype in DTYPES.items()}
    found = written(tmp_path, [output(name, tensor) for name, tensor in tensors.items()])
    assert {name: tensor.dtype for name, tensor in found.items()} == DTYPES


def test_files_are_cut_as_the_source_was_or_by_size(tmp_path: Path) -> None:
    outputs = [output(f"t{number}", torch.zeros(10), "ab"[number > 2]) for number in range(6)]
    assert [len(shard) for shard in cut(outputs, None)] == [3, 3]
    assert [len(shard) for shard in cut(outputs, 90)] == [2, 2, 2]
    assert [len(shard) for shard in cut(outputs, 1)] == [1] * 6
    assert written(tmp_path, outputs, 90).keys() == {one.name for one in outputs}
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 240}
    assert index["weight_map"]["t5"] == "model-00003-of-00003.safetensors"


def test_what_fp16_cannot_hold_is_refused(tmp_path: Path) -> None:
    large = torch.tensor([1e5]).to(torch.float16)
    with pytest.raises(ModelError, match="A021"):
        written(tmp_path, [output("x", large)])


@pytest.mark.parametrize(
    "content", [b"", b"12345678", b"\xff" * 16, (2).to_bytes(8, "little") + b"[]", (2).to_bytes(8, "little") + b"3 "]
)
def test_what_is_no_file_of_the_format_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="A020"):
        header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_that_is_cut_or_has_grown_is_refused(change: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(4)}, path)
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"~")
    with pytest.raises(ModelError, match="A020"):
        header(path)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [3, 4]},
        {"shape": [-2, -2]},
        {"dtype": "F64"},
        {"dtype": "F3"},
        {"data_offsets": [4, 16]},
        {"data_offsets": [0, 12]},
        {"data_offsets": [0]},
        {"shape": None},
    ],
    ids=str,
)
def test_a_header_that_contradicts_itself_is_refused_before_a_tensor_is_read(
    change: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    facts = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    facts["b"] = {"dtype": "F32", "shape": [1], "data_offsets": [16, 20]}
    _write(path, facts)
    assert [one.key for one in header(path)] == ["a", "b"]
    _write(path, facts | {"a": facts["a"] | change})
    with pytest.raises(ModelError, match="A020"):
        header(path)
    _write(path, facts | {"a": {key: value for key, value in facts["a"].items() if key not in change}})
    with pytest.raises(ModelError, match="A020"):
        header(path)


def _write(path: Path, facts: dict[str, Any]) -> None:
    text = json.dumps(facts).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(20))
