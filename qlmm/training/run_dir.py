"""One run, one directory, one writer: its lock, its record, its checkpoints.

``run.json`` is written before anything else and marks the directory as ours; it says what was asked and how far the run
came. A directory that is not empty and has no ``run.json`` is never touched.

Usage: ``with RunDir.open(Path("runs/owl_lora"), recipe) as run: …``
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qlmm.core.errors import RunError, UsageError
from qlmm.core.events import Listener, Warned
from qlmm.core.filenames import RUN_RECORD
from qlmm.core.files import atomic_write
from qlmm.core.lock import only_writer
from qlmm.core.seal import SEAL_NAME, read_facts, seal, unseal, verify
from qlmm.training.run_record import RunRecord

__all__ = ["RunDir", "read_record"]

LOCK = "run.lock"
PREFIX = "checkpoint-"


class RunDir:
    """The directory of one run, held under its lock."""

    def __init__(self, path: Path, record: RunRecord) -> None:
        self.path = path
        self.record = record

    @classmethod
    @contextmanager
    def open(cls, path: Path, new: RunRecord) -> Iterator[RunDir]:
        """Create the directory, or open the run that lives in it, and hold its lock.

        Args:
            path: the run directory.
            new: what a new run records about itself; an existing run keeps its own.

        Raises:
            UsageError: O001 when the directory is not ours, O002 when another process writes to it.
        """
        existing = read_record(path)
        path.mkdir(parents=True, exist_ok=True)
        with only_writer(path / LOCK, lambda: _in_use(path)):
            # Read again under the lock: another process may have started the run in between.
            run = cls(path, read_record(path) or existing or new)
            run.write(writer=_writer())
            yield run

    def write(self, **changes: Any) -> None:
        """Change fields of the record, and put it on the disk in one step."""
        self.record = self.record.model_copy(update=changes)
        atomic_write(self.path / RUN_RECORD, self.record.to_text())

    def sealed(self) -> list[Path]:
        """Checkpoints that carry a seal, oldest first; ordered by their step, never by a clock."""
        found = [path for path in self.path.glob(f"{PREFIX}*") if (path / SEAL_NAME).is_file()]
        return sorted(found, key=_step)

    def last_good(self, listener: Listener) -> Path | None:
        """The newest checkpoint whose every byte is as it was sealed; younger ones are named and passed over.

        Raises:
            RunError: C001 when there are sealed checkpoints and none of them is whole.
        """
        candidates = self.sealed()
        for path in reversed(candidates):
            reasons = verify(path)
            if not reasons:
                return path
            listener(Warned(f"{path.name} is damaged and passed over: {'; '.join(reasons[:3])}"))
        if candidates:
            raise RunError.one(
                "C001",
                f"no checkpoint in {self.path} is whole",
                help="restore a checkpoint from a copy, or start again in a new output.dir",
            )
        return None

    def seal_checkpoint(self, step: int, keep: int) -> Path:
        """Seal a finished save, and only then let older checkpoints go."""
        path = self.path / f"{PREFIX}{step}"
        seal(path, {"step": step})
        for old in self.sealed()[:-keep]:
            # The seal goes first: what a kill leaves of the rest is never taken for a checkpoint.
            unseal(old)
            shutil.rmtree(old)
        return path

    def remove_unsealed(self) -> None:
        """Clear away what a killed save left behind."""
        for path in self.path.glob(f"{PREFIX}*"):
            if not (path / SEAL_NAME).is_file():
                shutil.rmtree(path)

    def step_of(self, checkpoint: Path) -> int:
        """The step a sealed checkpoint continues from."""
        return int(read_facts(checkpoint)["step"])


def read_record(path: Path) -> RunRecord | None:
    """The record of the run in a directory, or None where a new run may start.

    Raises:
        UsageError: O001 when something else is there.
    """
    try:
        other = path.is_symlink() or (path.exists() and not path.is_dir())
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError.one(
            "O001", f"it cannot be used: {why}", help="name another output.dir", key="output.dir"
        ) from error
    if other:
        raise UsageError.one("O001", f"{path} is not a directory", help="name another output.dir", key="output.dir")
    if not path.exists() or all(_is_trace(entry.name) for entry in path.iterdir()):
        return None
    try:
        return RunRecord.model_validate_json((path / RUN_RECORD).read_bytes())
    except FileNotFoundError:
        why = f"it holds files, but no {RUN_RECORD}"
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        why = (
            f"its {RUN_RECORD} cannot be read"
            if first["type"] == "json_invalid"
            else f"its {RUN_RECORD} is not one of a run: {place or 'file'}: {first['msg']}"
        )
    raise UsageError.one(
        "O001",
        f"{path} is not ours to write in: {why}",
        help="name an empty or new directory; nothing there was touched",
        key="output.dir",
    )


def _is_trace(name: str) -> bool:
    """What a run that was killed before its first record can leave behind."""
    return name == LOCK or (name.startswith(f".{RUN_RECORD}.") and name.endswith(".tmp"))


def _step(path: Path) -> int:
    digits = path.name.removeprefix(PREFIX)
    return int(digits) if digits.isdigit() else -1


def _in_use(path: Path) -> UsageError:
    record = read_record(path)
    writer = record.writer if record is not None and record.writer else "another process"
    help = "wait for that run to end, or name another output.dir"
    return UsageError.one("O002", f"{path} is in use by {writer}", help=help, key="output.dir")


def _writer() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
