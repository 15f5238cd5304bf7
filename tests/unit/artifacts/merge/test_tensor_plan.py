"""Which files hold a base's weights: those that transformers would read, and no guess about those out of reach."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import AutoModel, CLIPVisionConfig, CLIPVisionModel

from qlmm.artifacts.adapter.base_files import weight_files
from qlmm.artifacts.safetensors_stream import Reader, header
from qlmm.core.errors import ModelError
from qlmm.model.loading.hub import Located, locate

COMMIT = "c" * 40
INDEX, SHARD = "model.safetensors.index.json", "model-00001-of-00001.safetensors"


def test_where_a_folder_holds_both_forms_the_weights_are_those_that_transformers_reads(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=4, patch_size=2))
    model.save_pretrained(tmp_path)
    other = {name: torch.full_like(value, 7) for name, value in model.state_dict().items()}
    save_file(other, tmp_path / SHARD, metadata={"format": "pt"})
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(other, SHARD)}))
    (found,) = weight_files(locate(str(tmp_path)), "base.model")
    (stored,) = [one for one in header(found) if one.key.endswith("post_layernorm.weight")]
    read = next(value for name, value in AutoModel.from_pretrained(tmp_path).named_parameters() if "post_" in name)
    with Reader() as reader:
        assert torch.equal(reader.read(stored), read)


@pytest.mark.parametrize("text", ['{"weight_map": {"x"', "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"x": 3}}'])
def test_an_index_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ModelError, match=rf"A025.*{INDEX} is not an index"):
        weight_files(locate(str(tmp_path)), "base.model")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache that holds a model's configuration alone."""
    model = tmp_path / "models--me--tiny"
    for folder in ("refs", f"snapshots/{COMMIT}", f".no_exist/{COMMIT}"):
        (model / folder).mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    (model / "snapshots" / COMMIT / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return model


def _held(cache: Path, name: str, text: str) -> None:
    (cache / "snapshots" / COMMIT / name).write_text(text)


def _known_missing(cache: Path, name: str) -> None:
    (cache / ".no_exist" / COMMIT / name).touch()


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_weights_that_were_never_fetched_are_not_said_to_be_pickled(cache: Path, revision: str | None) -> None:
    with pytest.raises(ModelError, match="M003") as caught:
        weight_files(Located("me/tiny", "me/tiny", revision), "base.model")
    assert f"hf download me/tiny{f' --revision {revision}' if revision else ''}`" in str(caught.value)
    _known_missing(cache, "model.safetensors")
    with pytest.raises(ModelError, match="M003"):
        weight_files(Located("me/tiny", "me/tiny", revision), "base.model")


def test_a_model_that_is_known_to_have_no_safetensors_is_refused_for_that(cache: Path) -> None:
    for name in ("model.safetensors", INDEX):
        _known_missing(cache, name)
    with pytest.raises(ModelError, match="A026"):
        weight_files(locate("me/tiny"), "base.model")


def test_a_shard_that_was_never_fetched_is_told_from_one_that_is_not_there(cache: Path) -> None:
    _known_missing(cache, "model.safetensors")
    _held(cache, INDEX, json.dumps({"weight_map": {"x": SHARD}}))
    with pytest.raises(ModelError, match="M003"):
        weight_files(locate("me/tiny"), "base.model")
    _known_missing(cache, SHARD)
    with pytest.raises(ModelError, match=f"A025.*{SHARD}"):
        weight_files(locate("me/tiny"), "base.model")
    (cache / ".no_exist" / COMMIT / SHARD).unlink()
    _held(cache, SHARD, "")
    assert [path.name for path in weight_files(locate("me/tiny"), "base.model")] == [SHARD]
