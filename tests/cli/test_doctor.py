"""``qlmm doctor``: what is measured is said, secrets are not, problems are warnings and never an exit code."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from qlmm.builtin import registry as builtin
from qlmm.cli.commands import doctor as module
from qlmm.cli.commands.doctor import doctor, examine, four_bit

SECRET = "hf_" + "Qw3r" * 8


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This machine, with a token, an address with a password, and a home of its own."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_ENDPOINT", "https://user:pass-word@hub.example")
    monkeypatch.setenv("QLMM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")


def test_everything_is_one_json_object(machine: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    doctor(as_json=True)
    said = capsys.readouterr()
    facts = json.loads(said.out)["result"]
    assert facts["versions"]["torch"] == metadata.version("torch")
    assert facts["devices"]["cpu"]["cores"] >= 1
    assert facts["devices"]["cpu"]["memory"] > 1 << 30
    assert facts["disk"]["QLMM_HOME"] == {"path": str(tmp_path / "home"), "free": facts["disk"]["QLMM_HOME"]["free"]}
    assert facts["environment"]["HF_TOKEN"] == "set, not shown"
    assert list(facts["packaged"]) == builtin.names()
    assert not any(facts["packaged"].values())


def test_people_get_the_same_facts_without_secrets(machine: None, capsys: pytest.CaptureFixture[str]) -> None:
    doctor()
    said = capsys.readouterr()
    for words in ("versions", metadata.version("torch"), "cores", "NF4", "QLMM_HOME", "free"):
        assert words in said.out
    assert SECRET not in said.out + said.err
    assert "pass-word" not in said.out + said.err


def test_4_bit_is_tried_and_measured() -> None:
    found = four_bit()
    assert found["works"]
    assert 0.05 < found["relative_error"] < 0.12
    assert found["bits"] == 4


def test_broken_4_bit_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **settings: object) -> None:
        raise RuntimeError("no kernel for this processor")

    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(functional=SimpleNamespace(quantize_4bit=broken)))
    facts = examine()
    assert facts["four_bit"]["error"] == "RuntimeError: no kernel for this processor"
    assert any("base.quantize=none" in warning for warning in facts["warnings"])


def test_missing_bitsandbytes_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert not four_bit()["works"]


def test_a_missing_package_and_a_full_disk_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package-here", "torchvision"))
    monkeypatch.setattr("qlmm.core.files.free_bytes", lambda path: 100 << 20)
    warnings = examine()["warnings"]
    assert "no-such-package-here is not installed: pip install no-such-package-here" in warnings
    assert any(warning.startswith("only 100 MiB free at") for warning in warnings)
    assert not any("torchvision" in warning for warning in warnings)
