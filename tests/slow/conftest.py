"""A Hub on this machine and an adapter to share, for whatever talks to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import Hub
from tests.sharing import served, shared_adapter, waits


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the Hub's client would have waited."""
    return waits(monkeypatch)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> Iterator[Hub]:
    """The only Hub there is."""
    yield from served(tmp_path, monkeypatch)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An invented adapter with local paths in it."""
    return shared_adapter(tmp_path)
