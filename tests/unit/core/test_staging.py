"""Nothing is put where something is, where it would be in the way, or where there is no room for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlmm.core.errors import UsageError
from qlmm.core.files import follow_umask
from qlmm.core.staging import check_place, check_room, emptied, only_writer, publish, staged


@pytest.mark.parametrize("kind", ["full", "file", "link", "dead link", "under a file"])
def test_a_place_that_is_taken_is_refused(kind: str, tmp_path: Path) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    victim.mkdir()
    if kind == "link":
        out.symlink_to(victim)
    elif kind == "dead link":
        out.symlink_to(tmp_path / "nowhere")
    elif kind == "full":
        out.mkdir()
        (out / "mine").write_text("mine")
    else:
        out.write_text("mine")
    with pytest.raises(UsageError, match="A033"):
        check_place(out / "deeper" if kind == "under a file" else out)
    assert list(victim.iterdir()) == []


@pytest.mark.parametrize("inside", [".", "merged", "a/b"])
def test_nothing_is_put_into_what_is_read(inside: str, tmp_path: Path) -> None:
    (tmp_path / "read").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "read")
    with pytest.raises(UsageError, match=r"A033.*(lies inside|is a link)"):
        check_place(tmp_path / "link" / inside, [tmp_path / "read"])


@pytest.mark.parametrize("place", ["out", "a/b/out", "empty"])
def test_a_free_place_is_taken(place: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / place, [tmp_path / "elsewhere"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_a_disk_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlmm.core.staging.free_bytes", lambda path: 1 << 20)
    with pytest.raises(UsageError, match=r"A034.*needed"):
        check_room(tmp_path / "out", 1 << 10)


def test_the_current_folder_cannot_be_renamed_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for here in (Path(), Path("../") / tmp_path.name, tmp_path):
        with pytest.raises(UsageError, match=r"A033.*current folder"):
            check_place(here)


def test_a_stage_is_gone_afterwards_whatever_happened(tmp_path: Path) -> None:
    left = tmp_path / "deep" / ".out.part"
    left.mkdir(parents=True)
    (left / "of a process that was killed").touch()
    seen = []

    def interrupted() -> None:
        with staged(tmp_path / "deep" / "out") as stage:
            seen.extend(stage.iterdir())
            (stage / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == []
    assert list((tmp_path / "deep").iterdir()) == []


def test_two_do_not_make_the_same_folder(tmp_path: Path) -> None:
    with staged(tmp_path / "out") as stage:
        (stage / "mine").touch()
        with pytest.raises(UsageError, match=r"A033.*another process"), staged(tmp_path / "out"):
            pass
        with staged(tmp_path / "other"):
            pass
        assert (stage / "mine").exists()


@pytest.fixture
def hidden(request: pytest.FixtureRequest) -> Iterator[int]:
    """Files of this test are made under another umask."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("hidden", [0o077, 0o022, 0o002], indirect=True)
def test_locks_and_checkpoints_follow_the_umask(hidden: int, tmp_path: Path) -> None:
    with only_writer(tmp_path / "lock", AssertionError):  # type: ignore[arg-type]
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o666 & ~hidden
    (tmp_path / "checkpoint" / "deep").mkdir(parents=True, mode=0o700)
    weights = tmp_path / "checkpoint" / "deep" / "model.safetensors"
    weights.touch(mode=0o600)
    follow_umask(tmp_path / "checkpoint")
    assert weights.stat().st_mode & 0o777 == 0o666 & ~hidden
    assert weights.parent.stat().st_mode & 0o777 == 0o777 & ~hidden


def test_no_link_is_followed(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.mkdir()
    (victim / "mine").write_text("mine")
    (victim / "mine").chmod(0o600)
    link.symlink_to(victim)
    (emptied(link) / "new").write_text("new")
    assert not link.is_symlink()
    link.rename(tmp_path / "stage")
    (tmp_path / "stage" / "inner").symlink_to(victim / "mine")
    follow_umask(tmp_path / "stage")
    link.symlink_to(victim)
    publish(tmp_path / "stage", link, replace=True)
    assert (link / "new").read_text() == "new"
    assert [path.name for path in victim.iterdir()] == ["mine"]
    assert (victim / "mine").stat().st_mode & 0o777 == 0o600
