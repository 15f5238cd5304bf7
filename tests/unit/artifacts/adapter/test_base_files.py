"""The files and folders of a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlmm.artifacts.adapter.base_files import sources_of
from qlmm.recipe.schema import BaseSection
from tests.unit.artifacts.adapters import manifest


def read_from(folder: Path, **base: Any) -> list[Path]:
    facts = manifest()
    recipe = facts.recipe.model_copy(update={"base": BaseSection.model_validate(base)})
    return sources_of(folder, facts.model_copy(update={"recipe": recipe}))


def test_the_adapter_and_its_base_are_read(tmp_path: Path) -> None:
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    assert read_from(adapter, model=str(base)) == [adapter, base]


def test_of_an_assembled_base_every_part_is_read_and_the_connector_s_published_weights(tmp_path: Path) -> None:
    tower, language, owl = (tmp_path / name for name in ("tower", "language", "owl"))
    for place in (tower, language, owl):
        place.mkdir()
    connector = {"kind": "abstractor", "weights": str(owl)}
    found = read_from(tmp_path, vision=str(tower), language=str(language), connector=connector)
    assert found == [tmp_path, tower, language, owl]
