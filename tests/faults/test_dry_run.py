"""A plan without a run refuses what the run would refuse, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from qlmm.api import _record, plan
from qlmm.core.errors import QlmmError
from qlmm.core.seal import seal
from qlmm.training.plan import make_plan
from qlmm.training.run_dir import RunDir
from tests.runs import TinyRun


@pytest.fixture
def begun(tmp_path: Path) -> TinyRun:
    """A run that was started, and has a sealed checkpoint."""
    tiny = TinyRun.make(tmp_path)
    loaded = tiny.recipe()
    with RunDir.open(tmp_path / "run", _record(loaded, make_plan(loaded.recipe))) as run:
        checkpoint = tmp_path / "run" / "checkpoint-2"
        checkpoint.mkdir()
        (checkpoint / "weights").write_text("2")
        seal(checkpoint, {"step": 2, "run": run.record.id})
    return tiny


def written(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fewer_rows(folder: Path) -> None:
    rows = (folder / "rows.jsonl").read_text().splitlines()
    (folder / "rows.jsonl").write_text("\n".join(rows[:-1]))


SPOILT: dict[str, tuple[str, tuple[str, ...], Callable[[Path], object]]] = {
    "other keys": ("R040", ("training.learning_rate=1e-4",), lambda folder: None),
    "other rows": ("C002", (), fewer_rows),
    "damaged checkpoint": ("C001", (), lambda folder: (folder / "run/checkpoint-2/weights").write_text("3")),
    "foreign directory": ("O001", (), lambda folder: (folder / "run/run.json").unlink()),
    "base not whole": ("M151", (), lambda folder: (folder / "base/model.safetensors").unlink()),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_a_run_refuses(name: str, begun: TinyRun) -> None:
    code, overrides, spoil = SPOILT[name]
    assert plan(begun.recipe().recipe).facts.steps == 8
    spoil(begun.folder)
    before = written(begun.folder)
    with pytest.raises(QlmmError) as caught:
        plan(begun.recipe(*overrides).recipe)
    assert caught.value.problems[0].code == code
    assert written(begun.folder) == before


def test_a_directory_in_use(begun: TinyRun) -> None:
    with FileLock(begun.folder / "run" / "run.lock"), pytest.raises(QlmmError, match="O002"):
        plan(begun.recipe().recipe)
