"""Pull against a Hub on this machine: whole and checked, or nothing at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from qlmm.artifacts.adapter.manifest import read_manifest
from qlmm.artifacts.hub.transfer import pull
from qlmm.cli.app import app
from qlmm.core.filenames import CARD, MANIFEST
from tests.hub import Hub, Repo
from tests.sharing import REPO, contents, pushed, refusal, sendable


def test_a_pull_that_is_cut_off_anywhere_leaves_nothing_and_is_completed_by_the_next(
    hub: Hub, adapter: Path, tmp_path: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(adapter)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "first"))
    expected = contents(pull(REPO, tmp_path / "whole").folder)
    needed = len(hub.requests)
    assert needed > 3
    for answered in range(needed):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / f"cache-{answered}"))
        hub.requests.clear()
        hub.dies_after, target = answered, tmp_path / f"pulled-{answered}"
        code, said = refusal(partial(pull, REPO, target))
        assert code == "H008"
        assert "run the same command again" in said
        assert not target.exists()
        assert not list(tmp_path.glob(".*.part"))
        hub.dies_after = None
        assert contents(pull(REPO, target).folder) == expected


def test_a_download_that_breaks_goes_on_where_it_was(
    hub: Hub, adapter: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    pushed(adapter)
    name = "adapter_model.safetensors"
    hub.halves.add(name)
    there = contents(pull(REPO).folder)
    assert there[name] == (adapter / name).read_bytes()
    assert hub.continued == [8000]


def test_only_an_adapter_of_qlmm_is_pulled(hub: Hub, adapter: Path) -> None:
    assert refusal(lambda: pull("me/nothing"))[0] == "H020"
    hub.repos["me/plain"] = Repo()
    hub.repos["me/plain"].add("main", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, "peft")
    code, said = refusal(lambda: pull("me/plain"))
    assert code == "H021"
    assert "PeftModel.from_pretrained" in said
    hub.repos["me/plain"].add("main", {"config.json": b"{}"}, "model")
    assert refusal(lambda: pull("me/plain"))[0] == "H021"
    assert not list(Path().glob("*plain*"))


def test_a_damaged_or_strange_adapter_is_not_kept(hub: Hub, adapter: Path) -> None:
    pushed(adapter)
    repo, whole = hub.repos[REPO], hub.repos[REPO].files
    repo.add("main", whole | {"chat_template.jinja": b"{{ other }}"}, "changed by hand")
    code, said = refusal(lambda: pull(REPO))
    assert code == "H021"
    assert "chat_template.jinja" in said
    for name, refused in (("../../evil.json", "A002"), ("evil.bin", "H021"), ("held-out/a/b.png", "H021")):
        strange = whole[MANIFEST].replace(b'"chat_template.jinja"', json.dumps(name).encode())
        repo.add("main", whole | {MANIFEST: strange}, "strange")
        code, said = refusal(lambda: pull(REPO))
        assert code == refused
        assert name in said
    more = {"training_args.bin": b"\x80", "held-out/9.png": b"x", "held-out/../../x.png": b"x"}
    repo.add("main", whole | more, "more than an adapter")
    assert set(contents(pull(REPO).folder)) == set(sendable(adapter))


def changed(repo: Repo, new: dict[str, bytes], **facts: Any) -> None:
    """Somebody else's commit: other files, and a manifest with their hashes and other facts."""
    raw = json.loads(repo.files[MANIFEST])
    raw["files"] |= {name: hashlib.sha256(content).hexdigest() for name, content in new.items()}
    repo.add("main", repo.files | new | {MANIFEST: json.dumps(raw | facts).encode()}, "by hand")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}, "auto_map"),
        ("adapter_config.json", {"target_modules": "(a+)+$"}, "target_modules"),
        ("adapter_config.json", {"r": 10**6}, "r: "),
    ],
)
def test_an_adapter_that_would_run_code_or_hang_is_not_kept(
    hub: Hub, adapter: Path, name: str, content: dict[str, Any], named: str
) -> None:
    pushed(adapter)
    changed(hub.repos[REPO], {name: json.dumps(content).encode()})
    code, said = refusal(lambda: pull(REPO))
    assert (code, named in said) == ("H021", True)
    assert not list(Path().glob("owl*"))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_whose_hashes_are_not_all_there_is_not_kept(hub: Hub, adapter: Path, name: str) -> None:
    pushed(adapter)
    files = json.loads(hub.repos[REPO].files[MANIFEST])["files"]
    changed(hub.repos[REPO], {}, files={one: digest for one, digest in files.items() if one != name})
    code, said = refusal(lambda: pull(REPO))
    assert code == "H021"
    assert name in said
    assert not Path("owl").exists()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("adapter_model.safetensors", b"\x80\x04 a pickle", "is not a safetensors file"),
        ("adapter_model.safetensors", b"\x10\0\0\0\0\0\0\0{no header at all", "is not a safetensors file"),
        ("held-out/answer-1.png", b"GIF89a", "is not a PNG picture"),
    ],
)
def test_a_right_hash_makes_no_wrong_file_right(hub: Hub, adapter: Path, name: str, content: bytes, why: str) -> None:
    pushed(adapter)
    changed(hub.repos[REPO], {name: content})
    code, said = refusal(lambda: pull(REPO))
    assert code == "H021"
    assert f"{name} {why}" in said
    assert not Path("owl").exists()


def test_what_was_checked_is_what_is_said(hub: Hub, adapter: Path) -> None:
    commit = pushed(adapter).commit
    done = CliRunner().invoke(app, ["pull", REPO], catch_exceptions=False)
    checked = set(contents(Path("owl"))) - {MANIFEST, CARD}
    assert f"{REPO}@{commit}, verified: {len(checked)} files have the hashes that its {MANIFEST} names" in done.stderr
    assert checked == set(read_manifest(Path("owl")).files)


def test_a_proof_that_cannot_be_read_is_refused_before_anything_is_kept(hub: Hub, adapter: Path) -> None:
    pushed(adapter)
    changed(hub.repos[REPO], {}, proof={"x": 1})
    code, said = refusal(lambda: pull(REPO))
    assert code == "A002"
    assert "is damaged: proof" in said
    assert not Path("owl").exists()


def test_the_current_folder_is_not_replaced(hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(adapter)
    hub.requests.clear()
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    assert refusal(lambda: pull(REPO, Path()))[0] == "A033"
    assert Path.cwd().is_dir()
    assert hub.requests == []


def test_room_is_asked_for_as_much_as_is_needed(hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(adapter)
    files = {name: content for name, content in hub.repos[REPO].files.items() if name != ".gitattributes"}
    size, manifest = sum(len(content) for content in files.values()), len(files[MANIFEST])
    asked: list[int] = []
    monkeypatch.setattr("qlmm.artifacts.hub.transfer.check_room", lambda _, needed: asked.append(needed))
    pull(REPO, Path("once"))
    pull(REPO, Path("twice"))
    # The manifest is read first, and what lies in the cache is not fetched again.
    assert asked == [2 * size - manifest, size]


def test_a_full_disk_is_told_before_anything_is_fetched(
    hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(adapter)
    hub.requests.clear()
    monkeypatch.setattr("qlmm.core.staging.free_bytes", lambda _: 1000)
    assert refusal(lambda: pull(REPO))[0] == "A034"
    assert hub.asked("adapter_model") == []
    assert not Path("owl").exists()


def test_nothing_is_overwritten(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    pushed(adapter)
    (tmp_path / "owl").mkdir()
    assert pull(REPO).folder == Path("owl")
    hub.requests.clear()
    assert refusal(lambda: pull(REPO))[0] == "A033"
    assert refusal(lambda: pull(REPO, adapter / CARD))[0] == "A033"
    assert hub.requests == []


def test_the_disk_has_the_last_word(hub: Hub, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(adapter)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(shutil, "copyfile", full)
    code, said = refusal(lambda: pull(REPO))
    assert code == "H023"
    assert "No space left on device" in said
    assert not (tmp_path / "owl").exists()
    assert not (tmp_path / ".owl.part").exists()
