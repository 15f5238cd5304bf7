"""One run, one directory, one writer: its lock, its record, its checkpoints.

``run.json`` is written before anything else and marks the directory as ours: it has what was asked and how far the run
came. A directory that is not empty and has no ``run.json`` is never touched.

Usage: ``with RunDir.open(Path("runs/owl_lora"), record) as run: …``
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError

from qlmm.core.errors import RunError, UsageError
from qlmm.core.events import Listener, RowLeftOut, Warned
from qlmm.core.filenames import RUN_RECORD
from qlmm.core.files import atomic_write, follow_umask, free_bytes, fsync_dir
from qlmm.core.seal import SEAL_NAME, read_facts, seal, verify
from qlmm.core.secrets import redact_values
from qlmm.core.staging import only_writer
from qlmm.core.units import memory
from qlmm.data.fingerprint import DataFingerprint
from qlmm.model.loading.identity import BaseIdentity
from qlmm.model.numerics.finite import not_finite
from qlmm.proof.records import IN_JSON, Answer, HeldOutProof, PlanFacts, Proof, Verdicts
from qlmm.recipe.schema import Recipe

__all__ = ["Before", "RunDir", "RunRecord", "read_record"]

LOCK = "run.lock"
PREFIX = "checkpoint-"
SAVING = ".part"
# What a disk refuses a write with: it is full, or a quota or limit is reached, or it is broken.
REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


class Before(BaseModel):
    """What was measured and answered before the first step, for a continued run to remember."""

    model_config = ConfigDict(**IN_JSON, frozen=True)

    held_out: HeldOutProof
    answers: tuple[str, ...]


class RunRecord(BaseModel):
    """``run.json``: what a run was asked to do, how far it came, and what it proved; None is not known yet.

    Attributes:
        id: of this run alone; seals carry it, so that another run's checkpoints are left alone.
        recipe: as it ran, overrides and defaults included.
        versions: of the packages that decide what a run computes.
        environment: variables that libraries compute by, as they were set.
        changes: what of these was different when the run went on; none for a run that is exact.
        status: how far it came; `unproven` means that training ended but a promise was broken.
        writer: the process that wrote last.
        frozen_sha256: one hash over the base's tensors.
        rows_at_once: how many rows of a batch memory took, where that is not all of them.
        lost_trackers: which trackers raised an error and got nothing more, after which step, and why.
        left_out: rows that have no part in the loss from a step on, since their pictures cannot be read.
    """

    model_config = ConfigDict(**IN_JSON, frozen=True)

    version: Literal[1] = 1
    id: str = ""
    recipe: Recipe
    recipe_file: str
    overrides: tuple[str, ...] = ()
    versions: dict[str, str]
    environment: dict[str, str] = {}
    changes: tuple[str, ...] = ()
    base: BaseIdentity
    data: DataFingerprint
    plan: PlanFacts
    status: Literal["new", "unfinished", "finished", "unproven"] = "new"
    writer: str | None = None
    before: Before | None = None
    frozen_sha256: str | None = None
    rows_at_once: int | None = None
    lost_trackers: tuple[str, ...] | None = None
    left_out: tuple[RowLeftOut, ...] = ()
    proof: Proof | None = None
    verdicts: Verdicts | None = None
    adapter: str | None = None
    answers: tuple[Answer, ...] | None = None

    def to_text(self) -> str:
        """The record as JSON, without access keys and what is not known yet."""
        unknown = {name for name in type(self).model_fields if vars(self)[name] is None}
        facts = redact_values(json.loads(self.model_dump_json(exclude=unknown)))
        return json.dumps(facts, indent=1, ensure_ascii=False) + "\n"


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
            RunError: O005 when the disk refuses a write while it is open.
        """
        read_record(path)
        path.mkdir(parents=True, exist_ok=True)
        with only_writer(path / LOCK, lambda: _in_use(path)):
            # Read again under the lock: another process may have started the run in between.
            run = cls(path, read_record(path) or new)
            began = time.strftime("%Y-%m-%d %H:%M:%S")
            try:
                run.write(writer=f"process {os.getpid()} on {socket.gethostname()} since {began}")
                yield run
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
                raise run.unwritten("a file of the run", error) from error

    @classmethod
    def look(cls, path: Path) -> RunDir | None:
        """The run that lives in a directory, as it is; None where a new one may start. Nothing is written.

        Raises:
            UsageError: O001, O002 as `open`.
        """
        record = read_record(path)
        if (path / LOCK).is_file():
            with only_writer(path / LOCK, lambda: _in_use(path)):
                record = read_record(path)
        return cls(path, record) if record is not None else None

    def write(self, **changes: Any) -> None:
        """Change fields of the record, and put it on the disk in one step."""
        self.record = self.record.model_copy(update=changes)
        atomic_write(self.path / RUN_RECORD, self.record.to_text())

    @property
    def saving(self) -> Path:
        """Where checkpoints and the adapter are made, and where checkpoints go to be removed."""
        return self.path / SAVING

    def sealed(self) -> list[Path]:
        """Checkpoints that this run sealed, oldest first; ordered by their step, never by a clock."""
        return sorted((one for one in self.path.glob(f"{PREFIX}*") if self._is_ours(one)), key=_step)

    def _is_ours(self, path: Path) -> bool:
        """Whether this run sealed a folder under the name it has; a seal that cannot be read counts."""
        if _step(path) < 0 or not (path / SEAL_NAME).is_file():
            return False
        try:
            facts = read_facts(path)
        except RunError:
            return True
        return bool(facts.get("step") == _step(path) and facts.get("run", "") == self.record.id)

    def last_good(self, listener: Listener) -> Path | None:
        """The newest checkpoint that is as it was sealed and has finite numbers alone; younger ones are set aside.

        Raises:
            RunError: C001 when there are sealed checkpoints and none of them is whole.
        """
        damaged: list[tuple[Path, str]] = []
        for path in reversed(self.sealed()):
            reasons = verify(path) or not_finite(path)
            if not reasons:
                for younger, why in damaged:
                    listener(Warned(f"{younger.name} is damaged and set aside as {_set_aside(younger).name}: {why}"))
                return path
            damaged.append((path, "; ".join(reasons[:3])))
        if damaged:
            raise RunError.one(
                "C001",
                f"no checkpoint in {self.path} is whole: " + "; ".join(f"{path.name}: {why}" for path, why in damaged),
                help="restore a checkpoint from a copy, or start again in a new output.dir",
            )
        return None

    def seal_checkpoint(self, step: int, keep: int, listener: Listener) -> Path:
        """Seal a finished save and give it its name, and only then let older checkpoints go.

        Raises:
            RunError: G004 when a number in it is not finite, O005 when the disk refuses.
        """
        name = f"{PREFIX}{step}"
        made, path = self.saving / name, self.path / name
        with self.writing(f"checkpoint {step}"):
            if reasons := not_finite(made):
                help = "lower the learning rates; checkpoints sealed before are intact"
                raise RunError.one("G004", f"{name} is not kept: {'; '.join(reasons[:3])}", help=help)
            follow_umask(made)
            seal(made, {"step": step, "run": self.record.id})
            if path.exists():
                listener(Warned(f"{path} is not of this run: it is set aside as {_set_aside(path).name}"))
            made.rename(path)
            fsync_dir(self.path)
        older = [one for one in self.sealed() if _step(one) < step and not one.is_symlink()]
        for old in older[: max(0, len(older) + 1 - keep)]:
            # A kill leaves it whole under its name, or under one that is cleared away at the next start.
            old.rename(self.saving / old.name)
        self.clear()
        return path

    def clear(self) -> None:
        """Remove what was left half made, and checkpoints that were let go."""
        shutil.rmtree(self.saving, ignore_errors=True)

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Turn a write that failed into O005, and remove what is half made.

        torch and safetensors have errors of their own for a full disk.
        """
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            self.clear()
            raise self.unwritten(what, error) from error
        except BaseException:
            self.clear()
            raise

    def unwritten(self, what: str, error: Exception) -> RunError:
        """O005: what could not be written, why, and how much room there is."""
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        return RunError.one(
            "O005",
            f"{what} could not be written to {self.path}: {why}; {memory(free_bytes(self.path))} are free there",
            help="make room, then start the same command again; checkpoints sealed before are intact",
        )

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
    """The number in a checkpoint's name as the trainer writes it, or -1."""
    digits = path.name.removeprefix(PREFIX)
    return int(digits) if digits.isdecimal() and digits == str(int(digits)) else -1


def _set_aside(path: Path) -> Path:
    """Rename a folder that stands where a checkpoint belongs, so that it is neither used nor lost."""
    places = (path.with_name(f"{path.name}.aside{f'-{number}' if number > 1 else ''}") for number in count(1))
    return path.rename(next(place for place in places if not place.exists()))


def _in_use(path: Path) -> UsageError:
    record = read_record(path)
    writer = record.writer if record is not None and record.writer else "another process"
    return _refused(
        f"{path} is in use by {writer}", "wait for that run to end, or name another output.dir", code="O002"
    )
