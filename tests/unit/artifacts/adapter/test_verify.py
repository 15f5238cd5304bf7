"""What is refused without a base: pickle, values that are no numbers, runs without an adapter."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlmm.artifacts.adapter.allowed_files import check_no_pickle
from qlmm.artifacts.adapter.tensors import check_finite
from qlmm.artifacts.adapter.verify import Check, Verdict
from qlmm.artifacts.zoo.find import find_adapter
from qlmm.core.errors import ModelError, QlmmError
from tests.unit.artifacts.adapters import adapter_folder


@pytest.mark.parametrize("name", ["a.bin", "a.PT", "deep/a.pkl", "a.ckpt", "a.pth", "a.pickle", "a.joblib"])
def test_pickle_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("harmless")
    with pytest.raises(QlmmError, match=f"A014.*{name}"):
        check_no_pickle(tmp_path)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_is_refused_whatever_its_name(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(pickle.dumps({"x": 1}, protocol=protocol))
    with pytest.raises(QlmmError, match=r"A014.*weights\.safetensors"):
        check_no_pickle(tmp_path)


def test_zipped_pickle_is_refused_and_other_files_are_not(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "empty").touch()
    check_no_pickle(tmp_path)
    torch.save({"x": torch.zeros(2)}, tmp_path / "tokens")
    with pytest.raises(QlmmError, match=r"A014.*: tokens"):
        check_no_pickle(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_no_number_is_named(value: float, tmp_path: Path) -> None:
    save_file({"good": torch.zeros(2), "bad": torch.tensor([0, value])}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(QlmmError, match=r"A015.*such as bad"):
        check_finite(tmp_path)


def test_a_damaged_file_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x" * 30)
    with pytest.raises(QlmmError, match="A003"):
        check_finite(tmp_path)


def record(folder: Path) -> Path:
    (folder / "run.json").write_text(json.dumps({"status": "unfinished"}))
    return folder


def test_a_run_is_searched_for_its_adapter(tmp_path: Path) -> None:
    adapter_folder(record(tmp_path))
    assert find_adapter(str(tmp_path)) == tmp_path / "adapter"
    assert find_adapter(str(tmp_path / "adapter")) == tmp_path / "adapter"


def test_a_run_without_a_proven_adapter_says_why(tmp_path: Path) -> None:
    with pytest.raises(QlmmError, match=r"A012.*not finished"):
        find_adapter(str(record(tmp_path)))
    adapter_folder(tmp_path).rename(tmp_path / "adapter-UNPROVEN")
    with pytest.raises(QlmmError, match=r"A012.*broke a promise"):
        find_adapter(str(tmp_path))


@pytest.mark.parametrize(
    ("target", "code"),
    [("nowhere", "A001"), ("./some/where", "A001"), ("somebody/adapter", "A013"), ("a/b@main", "A013")],
)
def test_what_is_not_there_is_an_error_with_a_way_out(target: str, code: str) -> None:
    with pytest.raises(QlmmError) as caught:
        find_adapter(target)
    assert caught.value.problems[0].code == code
    assert caught.value.problems[0].help


def test_what_was_not_checked_never_counts_as_passed() -> None:
    passed, unchecked, failed = (Check("x", status, "") for status in ("ok", "not checked", "failed"))
    holds: Any = lambda *checks: Verdict(Path(), checks).holds  # noqa: E731  three uses in a row
    assert holds(passed, passed)
    assert not holds(passed, unchecked)
    assert not holds(passed, failed)


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_the_length_of_a_header_is_no_pickle(length: int, tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    facts = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    path.write_bytes(struct.pack("<Q", length) + json.dumps(facts).encode().ljust(length) + bytes(4))
    assert load_file(path)["a"].shape == (1,)
    check_no_pickle(tmp_path)
    path.rename(tmp_path / "weights.dat")
    with pytest.raises(ModelError, match="A014"):
        check_no_pickle(tmp_path)
