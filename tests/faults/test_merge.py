"""Whatever stands against a merge is said before anything is written; a killed one leaves nothing under its name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlmm.artifacts import safetensors_stream as shards
from qlmm.artifacts.adapter.folder import file_hashes
from qlmm.artifacts.adapter.manifest import read_manifest, write_manifest
from qlmm.artifacts.merge import merge as module
from qlmm.artifacts.merge.merge import Settings, merge
from qlmm.core.errors import QlmmError
from qlmm.core.filenames import LOCAL_RECIPE
from qlmm.training.plan import make_plan
from tests.families.merging import adapter_of, shaken
from tests.runs import TinyRun

SHARDS = Settings(shard_bytes=200_000, measured=False)
KILLED = 9


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base in two shards and an adapter for it."""
    folder = tmp_path_factory.mktemp("merge")
    run = TinyRun.make(folder)
    whole = load_file(folder / "base" / "model.safetensors")
    names, places = sorted(whole), {}
    for number, part in enumerate((names[:30], names[30:]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: whole[name] for name in part}, folder / "base" / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    (folder / "base" / "model.safetensors").unlink()
    (folder / "base" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    plan = make_plan(run.recipe("base.quantize=nf4").recipe)
    adapter_of(plan, shaken(plan), folder)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt; base and adapter know their new place."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "adapter" / LOCAL_RECIPE
    path.write_text(path.read_text().replace(str(made), str(tmp_path)))
    return tmp_path


def rehashed(place: Path, **changes: Any) -> None:
    """The adapter's manifest, made to fit its files again."""
    manifest = read_manifest(place / "adapter")
    files = file_hashes(place / "adapter")
    write_manifest(place / "adapter", manifest.model_copy(update={"files": files, **changes}))


def edited(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def another_adapter(place: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = place / "adapter" / "adapter_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})
    rehashed(place)


QUERY = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
TEXT_LAYERS = {"num_hidden_layers": 1}


def _flipped_bit(place: Path) -> None:
    path = place / "adapter" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _fewer_layers(place: Path) -> None:
    """Another base whose configuration the manifest knows: only the tensors can tell."""
    edited(place / "base" / "config.json", lambda stated: stated["text_config"].update(TEXT_LAYERS))
    from qlmm.model.loading.base import Base

    rehashed(place, base=Base.resolve(read_manifest(place / "adapter").recipe.base).identity)


def _other_tokens(place: Path) -> None:
    """Two letters change places."""

    def swap(stated: dict[str, Any]) -> None:
        words = stated["model"]["vocab"]
        words["A"], words["B"] = words["B"], words["A"]

    edited(place / "base" / "tokenizer.json", swap)


SPOILT: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "another configuration": (
        "A004",
        lambda place: edited(
            place / "base" / "config.json", lambda stated: stated["text_config"].update(rms_norm_eps=1e-3)
        ),
    ),
    "fewer layers": ("A017", _fewer_layers),
    "another shape": ("A017", lambda place: another_adapter(place, lambda s: s.update({QUERY: s[QUERY][:2].clone()}))),
    "a tensor too few": ("A017", lambda place: another_adapter(place, lambda state: state.pop(QUERY))),
    "a tensor too many": ("A017", lambda place: another_adapter(place, lambda s: s.update({"x": s[QUERY].clone()}))),
    "no number": ("A015", lambda place: another_adapter(place, lambda state: state[QUERY].fill_(float("nan")))),
    "a flipped bit": ("A003", _flipped_bit),
    "pickle": ("A014", lambda place: (place / "adapter" / "more.bin").write_bytes(b"\x80\x04.")),
    "another tokenizer": ("A032", _other_tokens),
    "a missing shard": ("A025", lambda place: (place / "base" / "model-00002-of-00002.safetensors").unlink()),
    "a cut shard": (
        "A020",
        lambda place: os.truncate(place / "base" / "model-00002-of-00002.safetensors", 5000),
    ),
    "weights elsewhere": (
        "A025",
        lambda place: edited(
            place / "base" / "model.safetensors.index.json",
            lambda stated: stated["weight_map"].update({"x": "../adapter/adapter_model.safetensors"}),
        ),
    ),
    "no safetensors": ("A026", lambda place: [path.unlink() for path in (place / "base").glob("model*")]),
    "quantised only": (
        "A030",
        lambda place: (
            edited(
                place / "base" / "config.json",
                lambda stated: stated.update(quantization_config={"quant_method": "gptq", "bits": 4}),
            ),
            _known(place),
        ),
    ),
    "a weight that is missing": ("A028", lambda place: _without(place, "q_proj")),
    "a weight of another shape": ("A027", lambda place: _without(place, "q_proj", keep=True)),
    "a place that is taken": ("A033", lambda place: (place / "merged").write_text("here")),
    "a folder that is not empty": (
        "A033",
        lambda place: ((place / "merged").mkdir(), (place / "merged" / "x").touch()),
    ),
    "a link": ("A033", lambda place: (place / "merged").symlink_to(place / "elsewhere")),
}


def _known(place: Path) -> None:
    from qlmm.model.loading.base import Base

    rehashed(place, base=Base.resolve(read_manifest(place / "adapter").recipe.base).identity)


def _without(place: Path, word: str, *, keep: bool = False) -> None:
    for path in (place / "base").glob("*.safetensors"):
        state = load_file(path)
        for name in [name for name in state if word in name and "vision" not in name]:
            value = state.pop(name)
            if keep:
                state[name] = value[:8].clone()
        save_file(state, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", SPOILT)
def test_what_stands_against_it_is_said_before_anything_is_written(name: str, place: Path) -> None:
    code, spoil = SPOILT[name]
    spoil(place)
    before = sorted(str(path) for path in place.rglob("*"))
    with pytest.raises(QlmmError) as caught:
        merge(str(place / "adapter"), place / "merged", SHARDS)
    (problem,) = caught.value.problems
    assert problem.code == code, str(caught.value)
    assert problem.help
    assert sorted(str(path) for path in place.rglob("*")) == before


@pytest.mark.parametrize("inside", ["base/merged", "adapter/merged", "base"])
def test_nothing_is_written_into_what_is_read(inside: str, place: Path) -> None:
    with pytest.raises(QlmmError, match="A033"):
        merge(str(place / "adapter"), place / inside, SHARDS)


def test_a_full_disk_is_seen_beforehand(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlmm.core.staging.free_bytes", lambda path: 1000)
    with pytest.raises(QlmmError, match=r"A034.*needed"):
        merge(str(place / "adapter"), place / "merged", SHARDS)
    assert not (place / "merged").exists()


def test_an_empty_folder_is_taken(place: Path) -> None:
    (place / "merged").mkdir()
    merge(str(place / "adapter"), place / "merged", SHARDS)
    assert (place / "merged" / "config.json").is_file()


def _shards(place: Path) -> int:
    merge(str(place / "adapter"), place / "count", SHARDS)
    return len(list((place / "count").glob("*.safetensors")))


def test_killed_at_every_shard_nothing_lies_under_its_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real kill, in a child, before each shard and before the publishing; the next merge works all the same."""
    count = _shards(place)
    assert count > 2
    honest = shards._write
    for victim in range(count):
        child = os.fork()
        if child == 0:
            left = iter(range(count))

            def deadly(path: Path, *rest: Any, left: Any = left, victim: int = victim) -> None:
                if next(left) == victim:
                    path.write_bytes(b"half")
                    os.kill(os.getpid(), KILLED)
                honest(path, *rest)

            monkeypatch.setattr(shards, "_write", deadly)
            try:
                merge(str(place / "adapter"), place / "merged", SHARDS)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == KILLED
        assert not (place / "merged").exists()
        assert (place / ".merged.part").exists()
    merge(str(place / "adapter"), place / "merged", SHARDS)
    assert not list(place.glob(".merged.*"))
    assert len(list((place / "merged").glob("*.safetensors"))) == count


@pytest.mark.parametrize("error", [OSError(28, "no space left"), KeyboardInterrupt()], ids=["disk", "ctrl-c"])
def test_a_failure_on_the_way_leaves_nothing(
    error: BaseException, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(module, "write_config_files", failing)
    before = sorted(str(path) for path in place.rglob("*"))
    with pytest.raises(type(error)):
        merge(str(place / "adapter"), place / "merged", SHARDS)
    assert sorted(str(path) for path in place.rglob("*")) == before
