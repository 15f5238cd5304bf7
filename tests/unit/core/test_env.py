"""The environment is read through one documented table."""

from __future__ import annotations

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
