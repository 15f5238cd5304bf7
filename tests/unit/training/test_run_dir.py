"""One directory, one writer; nothing that is not ours is touched, nothing whole is lost."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from qlmm.core.errors import RunError, UsageError
from qlmm.core.events import Event
from qlmm.training.run_dir import RunDir
from tests.run_facts import record


def _checkpoint(run: RunDir, step: int, keep: int = 2) -> Path:
    folder = run.path / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "weights").write_bytes(bytes([step]) * 100)
    return run.seal_checkpoint(step, keep)


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


def test_a_killed_save_is_not_a_checkpoint(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, record()) as run:
        _checkpoint(run, 5)
        (tmp_path / "checkpoint-6").mkdir()
        (tmp_path / "checkpoint-6/half").write_text("")
        run.remove_unsealed()
        assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]


def test_only_so_many_checkpoints_are_kept(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, record()) as run:
        for step in (2, 4, 6, 100):
            _checkpoint(run, step, keep=2)
        assert [path.name for path in run.sealed()] == ["checkpoint-6", "checkpoint-100"]
