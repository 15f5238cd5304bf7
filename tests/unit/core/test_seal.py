"""A sealed folder verifies; any change to it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qlmm.core.errors import RunError
from qlmm.core.seal import read_facts, seal, verify


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-2"
    (folder / "sub").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes(range(256)))
    (folder / "sub" / "state.json").write_text("{}")
    seal(folder, {"step": 2})
    return folder


def test_a_sealed_folder_is_whole_and_keeps_its_facts(sealed: Path) -> None:
    assert verify(sealed) == []
    assert read_facts(sealed) == {"step": 2}


def test_sealing_again_replaces_the_seal(sealed: Path) -> None:
    (sealed / "more.txt").write_text("x")
    seal(sealed, {"step": 3})
    assert (verify(sealed), read_facts(sealed)) == ([], {"step": 3})


def test_a_sealed_folder_may_be_moved(sealed: Path) -> None:
    assert verify(sealed.rename(sealed.with_name("elsewhere"))) == []


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "weights.bin").unlink(), "weights.bin: missing"),
        (lambda folder: (folder / "weights.bin").write_bytes(b"x"), "weights.bin: 1 bytes, sealed with 256"),
        (lambda folder: (folder / "weights.bin").write_bytes(bytes(256)), "weights.bin: content differs"),
        (lambda folder: (folder / "sub" / "extra.bin").touch(), "sub/extra.bin: not in the seal"),
        (lambda folder: (folder / "seal.json").unlink(), "seal.json: missing"),
        (lambda folder: (folder / "seal.json").write_text("{"), "seal.json: cut short"),
        (lambda folder: (folder / "seal.json").write_text("[]"), "seal.json: cut short"),
        (lambda folder: (folder / "seal.json").write_text('{"version": 9}'), "seal.json: version 9"),
    ],
)
def test_damage_is_named(sealed: Path, damage: Callable[[Path], object], reason: str) -> None:
    damage(sealed)
    assert [found for found in verify(sealed) if found.startswith(reason)]


def test_every_flipped_byte_of_every_file_is_noticed(sealed: Path) -> None:
    for path in (sealed / "weights.bin", sealed / "sub" / "state.json"):
        whole = path.read_bytes()
        for place in range(0, len(whole), 17):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert verify(sealed)
        path.write_bytes(whole)
    assert verify(sealed) == []


@pytest.mark.parametrize("cut", range(0, 300, 37))
def test_a_seal_cut_short_is_no_seal(sealed: Path, cut: int) -> None:
    path = sealed / "seal.json"
    path.write_bytes(path.read_bytes()[:cut])
    assert verify(sealed)


def test_a_seal_cannot_point_outside_its_folder(sealed: Path) -> None:
    content = json.loads((sealed / "seal.json").read_text())
    content["files"]["../outside"] = {"size": 1, "sha256": ""}
    (sealed / "seal.json").write_text(json.dumps(content))
    assert "../outside: not inside the folder" in verify(sealed)


def test_links_are_refused(sealed: Path, tmp_path: Path) -> None:
    (sealed / "link").symlink_to(tmp_path)
    assert "link: not in the seal" in verify(sealed)
    with pytest.raises(RunError, match="link is not a plain file"):
        seal(sealed, {})


def test_facts_of_an_unsealed_folder_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="S002"):
        read_facts(tmp_path)
