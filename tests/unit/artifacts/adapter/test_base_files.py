"""The files and folders of a base."""

from __future__ import annotations

from pathlib import Path

from qlmm.artifacts.adapter.base_files import sources_of
from tests.unit.artifacts.adapters import manifest


def test_the_adapter_and_its_base_are_read(tmp_path: Path) -> None:
    facts = manifest()
    base = facts.recipe.base.model_copy(update={"model": str(tmp_path / "base")})
    facts = facts.model_copy(update={"recipe": facts.recipe.model_copy(update={"base": base})})
    assert sources_of(tmp_path / "adapter", facts) == [tmp_path / "adapter", tmp_path / "base"]
