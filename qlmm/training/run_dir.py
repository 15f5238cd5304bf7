"""One run, one directory, one writer: its lock, its record, its checkpoints.

``run.json`` is written before anything else and marks the directory as ours: it has what was asked and how far the run
came. A directory that is not empty and has no ``run.json`` is never touched.

Usage: ``with RunDir.open(Path("runs/owl_lora"), record) as run: …``
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qlmm.core.errors import RunError, UsageError
from qlmm.core.events import Listener, Warned
from qlmm.core.filenames import RUN_RECORD
from qlmm.core.files import atomic_write
from qlmm.core.seal import SEAL_NAME, read_facts, seal, unseal, verify
from qlmm.core.staging import only_writer
from qlmm.data.fingerprint import DataFingerprint
from qlmm.model.loading.identity import BaseIdentity
from qlmm.proof.records import IN_JSON, Answer, HeldOutProof, PlanFacts, Proof
from qlmm.recipe.schema import Recipe

__all__ = ["Before", "RunDir", "RunRecord", "read_record"]

LOCK = "run.lock"
PREFIX = "checkpoint-"


class Before(BaseModel):
    """What was measured and answered before the first step, for a continued run to remember."""

    model_config = ConfigDict(**IN_JSON, frozen=True)

    held_out: HeldOutProof
    answers: tuple[str, ...]


class RunRecord(BaseModel):
    """``run.json``: what a run was asked to do, how far it came, and what it proved; None is not known yet.

    Attributes:
        recipe: as it ran, overrides and defaults included.
        versions: of the packages that decide what a run computes.
        status: how far it came; `unproven` means that training ended but a promise was broken.
        writer: the process that wrote last.
        frozen_sha256: one hash over the base's tensors.
    """

    model_config = ConfigDict(**IN_JSON, frozen=True)

    version: Literal[1] = 1
    recipe: Recipe
    recipe_file: str
    overrides: tuple[str, ...] = ()
    versions: dict[str, str]
    base: BaseIdentity
    data: DataFingerprint
    plan: PlanFacts
    status: Literal["new", "unfinished", "finished", "unproven"] = "new"
    writer: str | None = None
    before: Before | None = None
    frozen_sha256: str | None = None
    proof: Proof | None = None
    adapter: str | None = None
    answers: tuple[Answer, ...] | None = None

    def to_text(self) -> str:
        """The record as JSON, without what is not known yet."""
        unknown = {name for name in type(self).model_fields if vars(self)[name] is None}
        return self.model_dump_json(indent=1, exclude=unknown) + "\n"


@dataclass(slots=True)
class RunDir:
    """The directory of one run, under its lock."""

    path: Path
    record: RunRecord

    @classmethod
    @contextmanager
    def open(cls, path: Path, new: RunRecord) -> Iterator[RunDir]:
        """Lock a directory for a new run with the record `new`, or for the run that lives in it with its own record.

        Raises:
            UsageError: O001 when the directory is not ours, O002 when another process writes to it.
        """
        read_record(path)
        path.mkdir(parents=True, exist_ok=True)
        with only_writer(path / LOCK, lambda: _in_use(path)):
            # Read again under the lock: another process may have started the run in between.
            run = cls(path, read_record(path) or new)
            began = time.strftime("%Y-%m-%d %H:%M:%S")
            run.write(writer=f"process {os.getpid()} on {socket.gethostname()} since {began}")
            yield run

    def write(self, **changes: Any) -> None:
        """Change fields of the record, and put it on the disk in one step."""
        self.record = self.record.model_copy(update=changes)
        atomic_write(self.path / RUN_RECORD, self.record.to_text())

    def sealed(self) -> list[Path]:
        """Checkpoints that have a seal, oldest first; ordered by their step, never by a clock."""
        return sorted((path for path in self.path.glob(f"{PREFIX}*") if (path / SEAL_NAME).is_file()), key=_step)

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
        """The step that a sealed checkpoint continues from."""
        return int(read_facts(checkpoint)["step"])


def read_record(path: Path) -> RunRecord | None:
    """The record of the run in a directory, or None where a new run may start.

    Raises:
        UsageError: O001 when something else is there.
    """
    try:
        other = path.is_symlink() or (path.exists() and not path.is_dir())
    except OSError as error:
        raise _refused(f"it cannot be used: {error.strerror or error}", "name another output.dir") from error
    if other:
        raise _refused(f"{path} is not a directory", "name another output.dir")
    if not path.exists() or all(_is_trace(entry.name) for entry in path.iterdir()):
        return None
    try:
        return RunRecord.model_validate_json((path / RUN_RECORD).read_bytes())
    except FileNotFoundError:
        why = f"it has files, but no {RUN_RECORD}"
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "file"
        damaged = first["type"] == "json_invalid"
        why = f"its {RUN_RECORD} " + ("cannot be read" if damaged else f"is not one of a run: {place}: {first['msg']}")
    raise _refused(
        f"{path} is not ours to write in: {why}", "name an empty or new directory; nothing there was touched"
    )


def _refused(why: str, help: str, code: str = "O001") -> UsageError:
    return UsageError.one(code, why, help=help, key="output.dir")


def _is_trace(name: str) -> bool:
    """Whether a run that was killed before its first record can leave such a file."""
    return name == LOCK or (name.startswith(f".{RUN_RECORD}.") and name.endswith(".tmp"))


def _step(path: Path) -> int:
    digits = path.name.removeprefix(PREFIX)
    return int(digits) if digits.isdigit() else -1


def _in_use(path: Path) -> UsageError:
    record = read_record(path)
    writer = record.writer if record is not None and record.writer else "another process"
    return _refused(
        f"{path} is in use by {writer}", "wait for that run to end, or name another output.dir", code="O002"
    )
