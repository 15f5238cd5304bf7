"""What a fresh process said is told in one line: the error itself, not the advice below it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qlmm.artifacts.adapter.reload import prove_reload
from qlmm.core.errors import ModelError, RunError
from qlmm.model.numerics.precision import Precision

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n'
OURS = f"{TRACEBACK}qlmm.core.errors.ModelError: {ModelError.one('A001', 'no adapter', help='name another')}\n"


@pytest.mark.parametrize(
    ("said", "told"),
    [(OURS, "adapter: error[A001]: no adapter"), (f"{TRACEBACK}KeyError: 'x'\n", "KeyError: 'x'"), ("", "no message")],
    ids=["ours", "any other", "none"],
)
def test_the_reason_is_the_error(said: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", said))
    with pytest.raises(RunError, match="A010") as caught:
        prove_reload(Path("adapter"), Precision("cpu", "fp32"))
    assert caught.value.problems[0].message.endswith(told)
