"""Staging and publishing: the folder's layout, modes by the umask, and one rename that makes it appear."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlmm.artifacts.adapter.folder import file_hashes, stage_adapter
from qlmm.core import staging
from qlmm.core.filenames import ADAPTER, UNPROVEN
from qlmm.core.staging import publish
from qlmm.model.loading.identity import BaseIdentity, PartIdentity


def part(name: str, revision: str | None = None) -> PartIdentity:
    return PartIdentity(id=name, revision=revision, config_sha256="aa")


NATIVE = BaseIdentity(kind="native", parts={"model": part("llava-hf/llava-1.5-7b-hf@0123abc", "0123abc" + "0" * 33)})
ASSEMBLED = BaseIdentity(kind="assembled", parts={"vision": part("a"), "language": part("b")})


class Saving:
    """Stands for a PEFT model or a processor: writes what it is told to, with modes that lock others out."""

    def __init__(self, **files: str) -> None:
        self.files = files
        self.asked: dict[str, Any] = {}

    def save_pretrained(self, folder: str, **settings: Any) -> None:
        self.asked = settings
        Path(folder).mkdir(exist_ok=True)
        for name, content in self.files.items():
            path = Path(folder, name.replace("__", "."))
            path.write_text(content)
            path.chmod(0o600)


MODEL = {
    "adapter_model__safetensors": "weights",
    "adapter_config__json": '{"base_model_name_or_path": "/tmp/x", "r": 4}',
}
PROCESSOR = {"processor_config__json": "{}", "chat_template__jinja": "{{ messages }}"}


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    return stage_adapter(Saving(**MODEL), Saving(**PROCESSOR), tmp_path / ".part", NATIVE)  # type: ignore[arg-type]  # stand-ins


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_staged_adapter_is_beside_its_place_and_not_in_it(staged: Path, tmp_path: Path) -> None:
    assert staged.parent == tmp_path / ".part"
    assert not (tmp_path / ADAPTER).exists()
    assert {path.name for path in staged.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "processor_config.json", "chat_template.jinja",
    }  # fmt: skip


def test_the_base_is_named_as_plain_peft_finds_it(staged: Path) -> None:
    config = json.loads((staged / "adapter_config.json").read_text())
    commit = NATIVE.parts["model"].revision
    assert (config["base_model_name_or_path"], config["revision"]) == ("llava-hf/llava-1.5-7b-hf", commit)
    assert commit is not None
    assert len(commit) == 40
    assert config["r"] == 4


def test_a_base_in_a_folder_is_named_without_its_place(tmp_path: Path) -> None:
    base = BaseIdentity(kind="native", parts={"model": part("/somewhere/secret-project/llava")})
    stage = stage_adapter(Saving(**MODEL), Saving(**PROCESSOR), tmp_path / ".part", base)  # type: ignore[arg-type]  # stand-ins
    assert json.loads((stage / "adapter_config.json").read_text())["base_model_name_or_path"] == "llava"


def test_an_assembled_base_is_left_unnamed_since_peft_could_not_load_it(tmp_path: Path) -> None:
    stage = stage_adapter(Saving(**MODEL), Saving(**PROCESSOR), tmp_path / ".part", ASSEMBLED)  # type: ignore[arg-type]  # stand-ins
    config = json.loads((stage / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (None, None)


def test_saving_never_asks_the_hub_about_embeddings(tmp_path: Path) -> None:
    model = Saving(**MODEL)
    stage_adapter(model, Saving(**PROCESSOR), tmp_path / ".part", NATIVE)  # type: ignore[arg-type]  # stand-ins
    assert model.asked == {"save_embedding_layers": False}


def test_what_an_earlier_attempt_left_is_not_mixed_in(staged: Path, tmp_path: Path) -> None:
    (staged / "stale.bin").write_text("old")
    again = stage_adapter(Saving(**MODEL), Saving(**PROCESSOR), tmp_path / ".part", NATIVE)  # type: ignore[arg-type]  # stand-ins
    assert not (again / "stale.bin").exists()


def test_every_file_is_hashed_but_those_that_no_manifest_names(staged: Path) -> None:
    for name in ("qlmm.json", "README.md", "local.json"):
        (staged / name).write_text("x")
    hashes = file_hashes(staged)
    assert set(hashes) == {
        "adapter_model.safetensors", "adapter_config.json", "chat_template.jinja", "processor_config.json",
    }  # fmt: skip
    assert hashes["adapter_model.safetensors"] == hashlib.sha256(b"weights").hexdigest()


def test_files_are_readable_as_the_umask_says(umask: int, tmp_path: Path) -> None:
    stage = stage_adapter(Saving(**MODEL), Saving(**PROCESSOR), tmp_path / ".part", NATIVE)  # type: ignore[arg-type]  # stand-ins
    place = publish(stage, tmp_path / ADAPTER)
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o666 & ~umask}
    assert place.stat().st_mode & 0o777 == 0o777 & ~umask
    found = os.umask(umask)
    assert found == umask


@pytest.mark.usefixtures("umask")
def test_a_processor_with_several_templates_is_published_whole(tmp_path: Path) -> None:
    """Such a processor saves all but its default template in a folder of their own."""
    stage = stage_adapter(Saving(**MODEL), Saving(**PROCESSOR), tmp_path / ".part", NATIVE)  # type: ignore[arg-type]  # stand-ins
    (stage / "additional_chat_templates").mkdir()
    (stage / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    assert "additional_chat_templates/tool_use.jinja" in file_hashes(stage)
    place = publish(stage, tmp_path / ADAPTER)
    assert place.stat().st_mode == (place / "additional_chat_templates").stat().st_mode
    plain = (place / "chat_template.jinja").stat().st_mode
    assert (place / "additional_chat_templates" / "tool_use.jinja").stat().st_mode == plain


def test_publishing_is_one_rename_after_everything_is_on_the_disk(
    staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    honest = Path.rename
    monkeypatch.setattr(staging, "fsync_file", lambda path: done.append("file"))
    monkeypatch.setattr(staging, "fsync_dir", lambda path: done.append(f"folder {path.name}"))

    def rename(self: Path, target: Path) -> Path:
        done.append("rename")
        return honest(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    publish(staged, tmp_path / ADAPTER)
    assert done == ["file"] * 4 + [f"folder {staged.name}", "rename", f"folder {tmp_path.name}"]


def test_a_rename_that_fails_leaves_no_half_adapter(
    staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="No space"):
        publish(staged, tmp_path / ADAPTER)
    assert not (tmp_path / ADAPTER).exists()
    assert len(list(staged.iterdir())) == 4


def test_publishing_again_replaces_the_whole_folder(staged: Path, tmp_path: Path) -> None:
    (tmp_path / ADAPTER).mkdir()
    (tmp_path / ADAPTER / "old.safetensors").write_text("old")
    with pytest.raises(OSError, match="not empty"):
        publish(staged, tmp_path / ADAPTER)
    assert (tmp_path / ADAPTER / "old.safetensors").exists()
    place = publish(staged, tmp_path / ADAPTER, replace=True)
    assert not (place / "old.safetensors").exists()
    assert not staged.exists()


def test_an_empty_folder_gives_way(staged: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert any(publish(staged, tmp_path / "out").iterdir())


def test_an_unproven_adapter_bears_a_name_that_says_so(staged: Path, tmp_path: Path) -> None:
    assert "UNPROVEN" in publish(staged, tmp_path / UNPROVEN).name
    assert not (tmp_path / ADAPTER).exists()
