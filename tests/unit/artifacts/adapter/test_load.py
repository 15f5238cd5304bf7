"""What stops an adapter from being loaded: files that are not as written, a base that is not the one it knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qlmm.artifacts.adapter.folder import file_hashes
from qlmm.artifacts.adapter.load import check_base, check_files, load
from qlmm.artifacts.adapter.manifest import read_manifest, write_manifest
from qlmm.artifacts.hub.package import pack
from qlmm.core.errors import ModelError
from qlmm.model.loading.base import Base
from qlmm.recipe.load import parse_recipe
from tests.unit.artifacts.adapters import RECIPE, adapter_folder, manifest


def _code(error: pytest.ExceptionInfo[ModelError]) -> str:
    (problem,) = error.value.problems
    assert problem.help
    return problem.code


def test_a_whole_folder_is_accepted(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path)
    check_files(folder, read_manifest(folder))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"])
@pytest.mark.parametrize("damage", ["gone", "changed", "cut"])
def test_a_file_that_is_not_as_written_is_named(name: str, damage: str, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path)
    content = (folder / name).read_bytes()
    if damage == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content[:-1] + (b"~" if damage == "changed" else b""))
    with pytest.raises(ModelError, match=rf"{name} missing or changed") as caught:
        check_files(folder, read_manifest(folder))
    assert _code(caught) == "A003"


def test_weights_are_missed_even_where_the_manifest_does_not_list_them(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        check_files(tmp_path, read_manifest(tmp_path))


def test_files_are_checked_before_anything_is_read_into_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter_folder(tmp_path)
    (folder / "adapter_model.safetensors").write_bytes(b"other weights")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the base was loaded")

    monkeypatch.setattr(Base, "resolve", never)
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert _code(caught) == "A003"


def test_weights_that_are_not_finite_are_neither_loaded_nor_pushed(tmp_path: Path) -> None:
    """Although they are as they were written."""
    folder = adapter_folder(tmp_path)
    save_file({"lora_A": torch.tensor([0.0, float("nan")])}, folder / "adapter_model.safetensors")
    write_manifest(folder, read_manifest(folder).model_copy(update={"files": file_hashes(folder)}))
    for read in (load, lambda place: pack(place, "me/owl", unproven=True)):
        with pytest.raises(ModelError, match="lora_A") as caught:
            read(folder)
        assert _code(caught) == "A015"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with a base's configuration, which is all that its identity needs."""
    folder = tmp_path / "base"
    folder.mkdir()
    config = {"model_type": "llava", "image_token_index": 7}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_base_it_was_trained_on_is_accepted(base: Path) -> None:
    recipe = parse_recipe(RECIPE.format(base=f"model: {base}"), "r.yaml").recipe
    found = Base.resolve(recipe.base)
    check_base(manifest(recipe=recipe, base=found.identity), found)


def test_a_base_of_another_shape_is_refused(base: Path) -> None:
    recipe = parse_recipe(RECIPE.format(base=f"model: {base}"), "r.yaml").recipe
    recorded = Base.resolve(recipe.base).identity
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"text_config": {"model_type": "llama", "hidden_size": 64}}))
    with pytest.raises(ModelError, match="is not the model this adapter was trained on") as caught:
        check_base(manifest(recipe=recipe, base=recorded), Base.resolve(recipe.base))
    assert _code(caught) == "A004"
    assert str(base) in str(caught.value)


def test_what_only_a_library_version_writes_is_no_other_base(base: Path) -> None:
    recipe = parse_recipe(RECIPE.format(base=f"model: {base}"), "r.yaml").recipe
    recorded = Base.resolve(recipe.base).identity
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"transformers_version": "9.9", "dtype": "bfloat16"}))
    check_base(manifest(recipe=recipe, base=recorded), Base.resolve(recipe.base))
