"""Libraries are quiet from the first import on, without being imported for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SHOWN = """
import os, sys
from typer.testing import CliRunner
from qlmm.cli.app import app
assert CliRunner().invoke(app, ["recipe", "list"]).exit_code == 0
print("transformers" in sys.modules, os.environ["TRANSFORMERS_VERBOSITY"], os.environ["HF_HUB_DISABLE_PROGRESS_BARS"])
"""


@pytest.mark.parametrize(("given", "level"), [(None, "error"), ("info", "info")])
def test_any_command_switches_the_noise_off_unless_the_user_wants_it(
    given: str | None, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    if given is not None:
        monkeypatch.setenv("TRANSFORMERS_VERBOSITY", given)
    root = Path(__file__).parents[4]
    done = subprocess.run([sys.executable, "-c", SHOWN], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout == f"False {level} 1\n"


def test_a_library_that_was_imported_before_is_quiet_too() -> None:
    code = (
        "from transformers.utils import logging\nfrom qlmm.cli.output.library_noise import quiet\nquiet()\n"
        "print(logging.get_verbosity() == logging.ERROR, logging.is_progress_bar_enabled())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
