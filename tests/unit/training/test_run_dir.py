"""One directory, one writer; nothing that is not ours is touched, nothing whole is lost."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from qlmm.core.errors import RunError, UsageError
from qlmm.core.events import Event
from qlmm.core.seal import seal, verify
from qlmm.training.run_dir import RunDir
from tests.run_facts import record


def _save(run: RunDir, step: int) -> Path:
    """What the trainer writes for a step, in the place it is given for it."""
    folder = run.saving / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes([step]) * 100)
    save_file({"lora_A": torch.full((2,), float(step))}, folder / "adapter_model.safetensors")
    torch.save({"state": {0: {"exp_avg": torch.zeros(2), "step": 1.0}}}, folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"loss": 1.5}]}))
    return folder


def _checkpoint(run: RunDir, step: int, keep: int = 2) -> Path:
    _save(run, step)
    return run.seal_checkpoint(step, keep, _ignore)


def _names(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.path.iterdir() if path.is_dir())


def _ignore(event: Event) -> None:
    del event


def test_a_new_run_is_marked_as_ours_at_once(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "run", record(seed=1)) as run:
        assert run.record.status == "new"
        written = json.loads((tmp_path / "run/run.json").read_text())
        assert written["recipe"]["training"]["seed"] == 1


def test_a_run_keeps_its_own_record(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, record(seed=1)) as run:
        run.write(status="unfinished")
    with RunDir.open(tmp_path, record(seed=2)) as run:
        assert (run.record.status, run.record.recipe.training.seed) == ("unfinished", 1)


def test_a_directory_with_other_files_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is not ours"), RunDir.open(tmp_path, record()):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_killed_while_writing_its_first_record_can_start_again(tmp_path: Path) -> None:
    (tmp_path / "run.lock").touch()
    (tmp_path / ".run.json.0123.tmp").write_text("{")
    with RunDir.open(tmp_path, record()) as run:
        assert run.record.status == "new"


@pytest.mark.parametrize("content", ["{}", "no json", '{"name": "an npm package"}'])
def test_a_foreign_run_json_does_not_make_a_directory_ours(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UsageError, match="is not ours"), RunDir.open(tmp_path, record()):
        pass


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "victim")
    with pytest.raises(UsageError), RunDir.open(tmp_path / "run", record()):
        pass
    assert not any((tmp_path / "victim").iterdir())


def _try(path: Path, answers: multiprocessing.Queue[str]) -> None:
    try:
        with RunDir.open(path, record()):
            answers.put("opened")
    except UsageError as error:
        answers.put(str(error))


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    with RunDir.open(tmp_path, record()):
        other = context.Process(target=_try, args=(tmp_path, answers))
        other.start()
        said = answers.get(timeout=20)
        other.join()
    assert "is in use by process" in said
    _try(tmp_path, answers)
    assert answers.get(timeout=20) == "opened"


def test_the_newest_whole_checkpoint_is_taken_and_damage_is_told(tmp_path: Path) -> None:
    told: list[Event] = []
    with RunDir.open(tmp_path, record()) as run:
        for step in (9, 10):
            _checkpoint(run, step)
        assert run.step_of(run.last_good(_ignore) or Path()) == 10
        (tmp_path / "checkpoint-10/weights").write_bytes(b"\x00" * 100)
        assert run.step_of(run.last_good(told.append) or Path()) == 9
        assert "checkpoint-10 is damaged" in str(told)
        (tmp_path / "checkpoint-9/weights").unlink()
        with pytest.raises(RunError, match="no checkpoint"):
            run.last_good(_ignore)


def test_younger_damaged_checkpoints_are_set_aside_and_named(tmp_path: Path) -> None:
    told: list[Event] = []
    with RunDir.open(tmp_path, record()) as run:
        for step in (2, 4, 6, 8):
            _checkpoint(run, step, keep=9)
        (tmp_path / "checkpoint-8/seal.json").write_text("{")
        (tmp_path / "checkpoint-6/weights").write_bytes(b"")
        (tmp_path / "checkpoint-2/weights").write_bytes(b"")
        good = run.last_good(told.append)
        assert good is not None
        assert good.name == "checkpoint-4"
        assert _names(run) == ["checkpoint-2", "checkpoint-4", "checkpoint-6.aside", "checkpoint-8.aside"]
        assert "checkpoint-8 is damaged and set aside as checkpoint-8.aside: seal.json: cut short" in str(told)
        assert "checkpoint-6 is damaged and set aside as checkpoint-6.aside: weights: 0 bytes" in str(told)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_run_that_goes_on_before_damaged_checkpoints_keeps_what_it_seals(tmp_path: Path, keep: int) -> None:
    with RunDir.open(tmp_path, record()) as run:
        for step in (2, 8):
            _checkpoint(run, step)
        (tmp_path / "checkpoint-8/weights").write_bytes(b"")
        run.last_good(_ignore)
        for step in (4, 6, 8):
            kept = _checkpoint(run, step, keep)
            assert kept.is_dir()
            assert run.last_good(_ignore) == kept
            assert len(run.sealed()) == keep


def test_a_younger_checkpoint_never_costs_the_one_just_sealed(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, record()) as run:
        _checkpoint(run, 100)
        assert _checkpoint(run, 4, keep=1).is_dir()
        assert _names(run) == ["checkpoint-100", "checkpoint-4"]


def _of_the_user(run: RunDir) -> dict[str, Path]:
    """Folders and links with names like checkpoints' that this run did not seal under these names."""
    path, other = run.path, run.path.parent / "other"
    sealed = _checkpoint(run, 3)
    shutil.copytree(sealed, path / "checkpoint-3-backup")
    shutil.copytree(sealed, path / "checkpoint-1")
    shutil.copytree(sealed, path / "checkpoint-03")
    (path / "checkpoint-mine").mkdir()
    (path / "checkpoint-mine/thesis.tex").write_text("years of work")
    (path / "checkpoint-2").mkdir()
    (path / "checkpoint-²").mkdir()
    with RunDir.open(other, record(id="another run")) as elsewhere:
        shutil.copytree(_checkpoint(elsewhere, 4), path / "checkpoint-4")
    return {one.name: one for one in path.iterdir() if one.is_dir() and one != sealed}


def test_only_checkpoints_that_this_run_sealed_are_used_and_removed(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "run", record(id="this run")) as run:
        users = _of_the_user(run)
        assert [path.name for path in run.sealed()] == ["checkpoint-3"]
        assert run.last_good(_ignore) == run.path / "checkpoint-3"
        run.clear()
        for step in (5, 6, 7):
            _checkpoint(run, step, keep=1)
        assert _names(run) == sorted([*users, "checkpoint-7"])


def test_a_folder_in_the_way_of_a_checkpoint_is_set_aside_and_named(tmp_path: Path) -> None:
    told: list[Event] = []
    with RunDir.open(tmp_path, record()) as run:
        (tmp_path / "checkpoint-2").mkdir()
        (tmp_path / "checkpoint-2/mine").touch()
        (tmp_path / "checkpoint-2.aside").mkdir()
        _save(run, 2)
        run.seal_checkpoint(2, 1, told.append)
        assert (tmp_path / "checkpoint-2.aside-2/mine").is_file()
        assert "set aside as checkpoint-2.aside-2" in str(told)
        assert run.last_good(_ignore) == tmp_path / "checkpoint-2"


def test_a_linked_checkpoint_is_used_and_never_removed(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "run", record()) as run:
        elsewhere = _checkpoint(run, 2).rename(tmp_path / "checkpoint-2")
        (run.path / "checkpoint-2").symlink_to(elsewhere)
        assert run.last_good(_ignore) == run.path / "checkpoint-2"
        _checkpoint(run, 4, keep=1)
        assert (elsewhere / "seal.json").is_file()


def _poison(folder: Path, which: str) -> None:
    if which == "weights":
        save_file({"lora_A": torch.tensor([0.0, float("nan")])}, folder / "adapter_model.safetensors")
    elif which == "optimizer":
        torch.save({"state": {0: {"exp_avg_sq": torch.tensor([float("inf")])}}}, folder / "optimizer.pt")
    else:
        (folder / "trainer_state.json").write_text('{"log_history": [{"loss": NaN}]}')


POISONED = [
    ("weights", "adapter_model.safetensors: lora_A is not finite"),
    ("optimizer", "optimizer.pt: state.0.exp_avg_sq is not finite"),
    ("history", "trainer_state.json: log_history.0.loss is not finite"),
]


@pytest.mark.parametrize(("which", "named"), POISONED)
def test_what_is_not_finite_is_never_sealed(tmp_path: Path, which: str, named: str) -> None:
    with RunDir.open(tmp_path, record()) as run:
        _checkpoint(run, 2, keep=1)
        _poison(_save(run, 4), which)
        with pytest.raises(RunError, match="G004") as caught:
            run.seal_checkpoint(4, 1, _ignore)
        assert named in str(caught.value)
        assert _names(run) == ["checkpoint-2"]


@pytest.mark.parametrize(("which", "named"), POISONED)
def test_a_poisoned_seal_is_not_continued_from(tmp_path: Path, which: str, named: str) -> None:
    """As those sealed without a look at their values."""
    told: list[Event] = []
    with RunDir.open(tmp_path, record()) as run:
        _checkpoint(run, 2)
        poisoned = _checkpoint(run, 4)
        _poison(poisoned, which)
        seal(poisoned, {"step": 4, "run": ""})
        assert run.last_good(told.append) == tmp_path / "checkpoint-2"
        assert named in str(told)


def test_a_killed_save_is_not_a_checkpoint(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, record()) as run:
        _checkpoint(run, 5)
        _save(run, 6)
    with RunDir.open(tmp_path, record()) as run:
        run.clear()
        assert run.last_good(_ignore) == tmp_path / "checkpoint-5"
        assert _names(run) == ["checkpoint-5"]


@pytest.mark.parametrize("number", range(1, 9))
def test_a_full_disk_at_any_write_of_a_seal_costs_that_checkpoint_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with RunDir.open(tmp_path, record()) as run:
        _checkpoint(run, 2, keep=1)
        _save(run, 4)
        calls = count(1)

        def full(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return honest(*args, **kwargs)

        honest = os.fsync
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"(?s)O005.*checkpoint 4 could not be written to .*No space left"):
            run.seal_checkpoint(4, 1, _ignore)
        monkeypatch.undo()
        assert not run.saving.exists()
        good = run.last_good(_ignore)
        assert good is not None
        assert good.name in ("checkpoint-2", "checkpoint-4")
        assert verify(good) == []


def test_a_full_disk_is_one_error_whoever_writes(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(RunError, match=r"(?s)O005.*No space left.*free there"), RunDir.open(tmp_path, record()):
        raise full
    with pytest.raises(FileNotFoundError), RunDir.open(tmp_path, record()):
        raise FileNotFoundError(errno.ENOENT, "a bug")


@pytest.mark.parametrize("error", [RuntimeError("unexpected pos 10112"), SafetensorError("I/O error: os error 28")])
def test_errors_of_the_libraries_that_write_are_a_full_disk_too(tmp_path: Path, error: Exception) -> None:
    with RunDir.open(tmp_path, record()) as run:
        _save(run, 4)
        with pytest.raises(RunError, match="O005"), run.writing("checkpoint 4"):
            raise error
        assert not run.saving.exists()


def test_only_so_many_checkpoints_are_kept(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, record()) as run:
        for step in (2, 4, 6, 100):
            _checkpoint(run, step, keep=2)
        assert [path.name for path in run.sealed()] == ["checkpoint-6", "checkpoint-100"]
