"""The environment is read through one documented table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qlmm.core import env


def test_home_is_the_variable_or_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLMM_HOME", str(tmp_path))
    assert env.home() == tmp_path
    monkeypatch.delenv("QLMM_HOME")
    assert env.home() == Path.home() / ".cache" / "qlmm"


def test_a_variable_outside_the_table_cannot_be_read() -> None:
    with pytest.raises(KeyError):
        env.flag("PATH")


@pytest.mark.parametrize(("value", "on"), [("1", True), ("yes", True), ("0", False), ("", False), ("No", False)])
def test_flags(monkeypatch: pytest.MonkeyPatch, value: str, on: bool) -> None:
    monkeypatch.setenv("QLMM_DEBUG", value)
    assert env.flag("QLMM_DEBUG") is on


def test_every_variable_is_documented_once() -> None:
    names = [variable.name for variable in env.VARIABLES]
    assert len(set(names)) == len(names)
    assert all(variable.doc.endswith(".") for variable in env.VARIABLES)


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in env.VARIABLES:
        monkeypatch.setenv(variable.name, "planted")
        assert ("planted" in env.shown(variable)) is not variable.secret
        assert variable.secret == any(word in variable.name for word in ("TOKEN", "KEY"))


def test_variables_that_overrule_a_recipe_are_hidden_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert env.not_obeyed() == ["ACCELERATE_MIXED_PRECISION"]
    with env.neutral():
        assert env.not_obeyed() == []
        os.environ["ACCELERATE_USE_CPU"] = "1"
    assert env.not_obeyed() == ["ACCELERATE_MIXED_PRECISION"]
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("NVIDIA_TF32_OVERRIDE", True),
        ("CUBLAS_WORKSPACE_CONFIG", True),
        ("TORCH_HOME", False),
        ("HF_HOME", False),
        ("TORCHINDUCTOR_CACHE_DIR", False),
    ],
)
def test_variables_that_libraries_compute_by_are_known(
    monkeypatch: pytest.MonkeyPatch, name: str, counts: bool
) -> None:
    monkeypatch.setenv(name, "1")
    assert (name in env.numeric()) is counts
