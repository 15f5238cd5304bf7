"""A small whole recipe to change in tests."""

from __future__ import annotations

from pathlib import Path

import pytest

SMALL = """\
version: 1
base:
  vision: builtin:a
  language: builtin:b
  connector:
    kind: mlp
adapter:
  r: 8
data:
  sources:
    - path: rows.jsonl
    - path: more.jsonl
      weight: 2
training:
  learning_rate: 1e-4
output:
  dir: runs/small
"""


@pytest.fixture
def small() -> str:
    return SMALL


@pytest.fixture
def small_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe as ``small.yaml`` in the current directory."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    return Path("small.yaml")
