"""An export is whole or not there: refused before anything is written, or gone when it fails on its way."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from qlmm.api import finetune
from qlmm.artifacts.export import export as module
from qlmm.artifacts.export.export import Wishes, export
from qlmm.core.errors import QlmmError
from qlmm.core.filenames import LOCAL_RECIPE
from tests.runs import TinyRun

pytestmark = pytest.mark.slow

KILLED = 9
INDEX = "model.safetensors.index.json"
SHARDS = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
# What each target does first with a file of its own.
WRITES = {
    "hf": "qlmm.artifacts.safetensors_stream._write",
    "vllm": "qlmm.artifacts.safetensors_stream._write",
    "gguf": "qlmm.artifacts.export.llamacpp.file._values",
    "ollama": "qlmm.artifacts.export.targets.ollama.atomic_write",
    "peft": "qlmm.artifacts.export.targets.peft.shutil.copyfile",
}
MERGING = [to for to in WRITES if to != "peft"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base in two shards and a run on it."""
    folder = tmp_path_factory.mktemp("export")
    run = TinyRun.make(folder)
    finetune(run.recipe("training.steps=2", "evaluation.answers=0"))
    whole = load_file(folder / "base" / "model.safetensors")
    names, places = sorted(whole), {}
    for file, part in zip(SHARDS, (names[:30], names[30:]), strict=True):
        save_file({name: whole[name] for name in part}, folder / "base" / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    (folder / "base" / "model.safetensors").unlink()
    (folder / "base" / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt; the adapter knows its base's new place."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "run" / "adapter" / LOCAL_RECIPE
    path.write_text(path.read_text().replace(str(made), str(tmp_path)))
    return tmp_path


def adapter(place: Path) -> str:
    return str(place / "run" / "adapter")


def listing(place: Path) -> list[str]:
    return sorted(str(path) for path in place.rglob("*"))


def _without_a_weight(place: Path) -> None:
    for path in (place / "base").glob("*.safetensors"):
        state = load_file(path)
        kept = {name: value for name, value in state.items() if "q_proj" not in name or "vision" in name}
        save_file(kept, path, metadata={"format": "pt"})


def _contradicting_header(place: Path) -> None:
    path = place / "base" / SHARDS[0]
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    facts = json.loads(content[8 : 8 + length])
    name = next(name for name in facts if name != "__metadata__")
    facts[name]["data_offsets"][0] += 4
    text = json.dumps(facts).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def _quantised_only(place: Path) -> None:
    path = place / "base" / "config.json"
    stated = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    path.write_text(json.dumps(stated))
    from qlmm.artifacts.adapter.manifest import read_manifest, write_manifest
    from qlmm.model.loading.base import Base

    manifest = read_manifest(Path(adapter(place)))
    write_manifest(
        Path(adapter(place)), manifest.model_copy(update={"base": Base.resolve(manifest.recipe.base).identity})
    )


SPOILT: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a missing shard": ("A025", lambda place: (place / "base" / SHARDS[1]).unlink()),
    "a damaged index": ("A025", lambda place: (place / "base" / INDEX).write_text('{"weight_map": {"x"')),
    "a cut shard": ("A020", lambda place: os.truncate(place / "base" / SHARDS[1], 5000)),
    "a header that contradicts itself": ("A020", _contradicting_header),
    "no safetensors": ("A026", lambda place: [path.unlink() for path in (place / "base").glob("model*")]),
    "a weight that is missing": ("A028", _without_a_weight),
    "quantised only": ("A030", _quantised_only),
}


@pytest.mark.parametrize("name", SPOILT)
@pytest.mark.parametrize("to", MERGING)
def test_a_base_that_cannot_be_merged_into_is_refused_before_anything_is_staged(
    to: str, name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, spoil = SPOILT[name]
    spoil(place)
    before = listing(place)

    def staged(out: Path) -> Any:
        raise AssertionError("a stage was made")

    monkeypatch.setattr(module, "staged", staged)
    with pytest.raises(QlmmError) as caught:
        export(adapter(place), to, place / "out", Wishes())
    assert caught.value.problems[0].code == code, str(caught.value)
    assert listing(place) == before


def test_an_adapter_alone_is_not_left_half_proven_where_a_shard_is_missing(place: Path) -> None:
    (place / "base" / SHARDS[1]).unlink()
    before = listing(place)
    with pytest.raises(QlmmError):
        export(adapter(place), "peft", place / "out", Wishes())
    assert listing(place) == before


@pytest.mark.parametrize("error", [OSError(28, "no space left"), KeyboardInterrupt()], ids=["disk", "ctrl-c"])
@pytest.mark.parametrize("to", WRITES)
def test_a_failure_on_the_way_leaves_nothing(
    to: str, error: BaseException, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    before = listing(place)
    with monkeypatch.context() as patch:
        patch.setattr(WRITES[to], failing)
        with pytest.raises(type(error)):
            export(adapter(place), to, place / "out", Wishes())
    assert listing(place) == before


@pytest.mark.parametrize("to", WRITES)
def test_killed_on_the_way_nothing_lies_under_its_name(to: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real kill, in a child; the next export works all the same and clears up."""
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(WRITES[to], lambda *_, **__: os.kill(os.getpid(), KILLED))
        try:
            export(adapter(place), to, place / "out", Wishes())
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == KILLED
    assert not (place / "out").exists()
    assert list(place.glob(".out.*")) != [], "it was killed before it had begun"
    assert export(adapter(place), to, place / "out", Wishes()).proof
    assert list(place.glob(".out.*")) == []


def test_a_full_disk_is_seen_beforehand(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlmm.core.staging.free_bytes", lambda path: 1000)
    before = listing(place)
    with pytest.raises(QlmmError, match=r"A034.*needed"):
        export(adapter(place), "gguf", place / "out", Wishes())
    assert listing(place) == before
