"""A released mPLUG-Owl becomes ordinary folders, once; what is damaged or runs code never becomes anything."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

from qlmm.core.errors import ModelError
from qlmm.core.seal import verify
from qlmm.model.assembled import owl_checkpoint
from qlmm.model.assembled.owl_checkpoint import OwlPart, owl_part
from qlmm.model.assembled.published import Checkpoint
from qlmm.model.loading.hub import locate_part
from tests.released import SIDE, Released, write_owl


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLMM_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "converted"


@pytest.fixture
def owl(tmp_path: Path) -> Released:
    return write_owl(tmp_path / "owl")


def folder_of(owl: Released, part: OwlPart) -> Path:
    found = owl_part(str(owl.folder), None, part)
    assert found is not None
    assert found[1] is None
    return found[0]


@torch.no_grad()
def test_the_tower_is_clips_and_gives_the_published_numbers(owl: Released) -> None:
    folder = folder_of(owl, "vision")
    tower = AutoModel.from_pretrained(folder)
    assert type(tower) is CLIPVisionModel
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    expected = owl.tower(pixels)
    assert torch.allclose(tower.post_layernorm(tower(pixels).last_hidden_state), expected, atol=1e-5)
    pictures = AutoImageProcessor.from_pretrained(folder)
    assert (pictures.size, pictures.do_center_crop) == ({"height": SIDE, "width": SIDE}, False)


@torch.no_grad()
def test_the_language_model_is_an_ordinary_one(owl: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owl_checkpoint, "MOST_BYTES", 100_000)
    folder = folder_of(owl, "language")
    assert len(list(folder.glob("*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    embeddings = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(inputs_embeds=embeddings).logits, owl.logits(embeddings))
    stated = json.loads((folder / "config.json").read_text())
    assert stated["architectures"] == ["LlamaForCausalLM"]
    assert not {"max_length", "top_k", "num_beams"} & stated.keys()
    assert AutoTokenizer.from_pretrained(folder)("what is").input_ids
    assert (folder / "generation_config.json").is_file()


def test_a_part_is_made_once_and_sealed(owl: Released, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(owl, "vision")
    assert verify(folder) == []
    assert folder.parent == home

    def never(self: Checkpoint, wanted: object) -> Iterator[tuple[str, Tensor]]:
        raise AssertionError("the checkpoint was read again")

    monkeypatch.setattr(Checkpoint, "tensors", never)
    assert folder_of(owl, "vision") == folder


def test_a_checkpoint_that_changed_is_converted_again(owl: Released) -> None:
    before = folder_of(owl, "vision")
    os.utime(owl.folder / "pytorch_model-00001-of-00002.bin", ns=(1, 1))
    assert folder_of(owl, "vision") != before


def test_a_conversion_that_is_cut_off_leaves_nothing(
    owl: Released, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(owl_checkpoint, "_write_config", cut)
        with pytest.raises(KeyboardInterrupt):
            folder_of(owl, "vision")
    assert [path.name for path in home.iterdir()] == ["prepare.lock"]
    assert verify(folder_of(owl, "vision")) == []


def test_safetensors_are_taken_before_pickles(owl: Released) -> None:
    save_file({name: value.contiguous() for name, value in owl.weights.items()}, owl.folder / "model.safetensors")
    for shard in owl.folder.glob("*.bin"):
        shard.write_bytes(b"nobody reads this")
    tower = load_file(folder_of(owl, "vision") / "model.safetensors")
    assert torch.equal(tower["post_layernorm.bias"], owl.weights["vision_model.post_layernorm.bias"])


class Payload:
    """A pickle that makes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("part", ["vision", "language"])
def test_a_pickle_with_code_in_it_is_not_run(owl: Released, home: Path, tmp_path: Path, part: OwlPart) -> None:
    marker = tmp_path / "run"
    torch.save({"language_model.lm_head.weight": Payload(marker)}, owl.folder / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(ModelError, match=r"pytorch_model-00002-of-00002\.bin has more than tensors") as caught:
        folder_of(owl, part)
    assert caught.value.problems[0].code == "M153"
    assert not marker.exists()
    assert [path.name for path in home.iterdir()] == ["prepare.lock"]


def test_a_missing_shard_is_named(owl: Released) -> None:
    (owl.folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ModelError, match=r"lacks pytorch_model-00002-of-00002\.bin") as caught:
        folder_of(owl, "vision")
    assert caught.value.problems[0].code == "M151"


def test_a_damaged_shard_is_named(owl: Released) -> None:
    file = owl.folder / "pytorch_model-00001-of-00002.bin"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ModelError, match=r"pytorch_model-00001-of-00002\.bin") as caught:
        folder_of(owl, "vision")
    assert caught.value.problems[0].code in ("M152", "M153")


@pytest.mark.parametrize(
    ("gone", "part", "fault"),
    [
        ("vision_model.encoder.layers.1.mlp.fc1.bias", "vision", "lacks encoder.layers.1.mlp.fc1.bias"),
        ("language_model.model.norm.weight", "language", "lacks model.norm.weight"),
        ("vision_model.", "vision", "has no vision tower"),
        ("language_model.", "language", "has no language model"),
    ],
)
def test_weights_that_are_not_there_are_named(owl: Released, gone: str, part: OwlPart, fault: str) -> None:
    kept = {name: value for name, value in owl.weights.items() if not name.startswith(gone)}
    torch.save(kept, owl.folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=fault) as caught:
        folder_of(owl, part)
    assert caught.value.problems[0].code == "M155"


def test_weights_of_another_version_are_named(owl: Released) -> None:
    torch.save(
        owl.weights | {"vision_model.encoder.layers.0.temporal.weight": torch.ones(3)},
        owl.folder / "pytorch_model.bin",
    )
    with pytest.raises(ModelError, match=r"has encoder\.layers\.0\.temporal\.weight, which no such model has"):
        folder_of(owl, "vision")


def test_other_models_are_left_alone(tmp_path: Path, home: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert owl_part(str(tmp_path), None, "language") is None
    assert locate_part(str(tmp_path), "language").path == str(tmp_path)
    assert owl_part("no/such", None, "vision") is None
    assert not home.exists()


def test_a_located_part_keeps_the_released_name(owl: Released) -> None:
    located = locate_part(str(owl.folder), "vision")
    assert (located.name, located.revision, located.commit) == (str(owl.folder), None, None)
    assert located.path == str(folder_of(owl, "vision"))


def test_a_sentencepiece_tokenizer_needs_its_package(owl: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    (owl.folder / "tokenizer.json").unlink()
    (owl.folder / "tokenizer.model").write_bytes(b"pieces")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs the package sentencepiece") as caught:
        folder_of(owl, "language")
    assert caught.value.problems[0].code == "M005"


def test_a_full_disk_is_told_and_leaves_nothing(owl: Released, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(owl_checkpoint, "save_file", full)
    with pytest.raises(ModelError, match=r"could not be converted: No space left on device") as caught:
        folder_of(owl, "language")
    assert caught.value.problems[0].code == "M154"
    assert [path.name for path in home.iterdir()] == ["prepare.lock"]


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
@pytest.mark.parametrize(
    ("name", "part"), [("preprocessor_config.json", "vision"), ("tokenizer_config.json", "language")]
)
def test_damaged_settings_are_named(owl: Released, name: str, part: OwlPart, text: str) -> None:
    (owl.folder / name).write_text(text)
    with pytest.raises(ModelError, match=f"M152(?s:.*){name} is damaged"):
        folder_of(owl, part)
