"""The record of each finished prompt, on the disk before the next begins, so that a run can go on where it stopped.

The first line of the file holds what the run was asked; a file that was begun with anything else is refused.

Usage: ``with Records.open(path, settings) as records: records.append(record)``
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qlmm.core.errors import RunError, UsageError
from qlmm.core.files import fsync_dir
from qlmm.core.lock import only_writer

__all__ = ["JudgedAnswer", "JudgedStatement", "Record", "Records", "Settings"]

VERSION = 1
SHORT = 40

Settings = Mapping[str, object]
"""All that decides what records say, by name, as JSON values; records only compare them."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class JudgedStatement(_Line):
    """One statement of an answer: what the judge was asked, and how likely its yes and its no are."""

    statement: str
    question: str
    yes: float
    no: float
    refuted: bool


class JudgedAnswer(_Line):
    """One answer; ``score`` is None where it says nothing, and ``split_by`` names who made the statements."""

    text: str
    split_by: Literal["judge", "sentences"]
    statements: tuple[JudgedStatement, ...]
    score: int | None


class Record(_Line):
    """All that was found about one prompt.

    Attributes:
        prompt: its number, from 0.
        origin: the row it comes from.
        question: its last question.
        pictures: the names of its pictures.
        seed: decides its draws.
        answers: in the order they were drawn.
        candidates: how many pairs of answers differ in score.
        pairs: places of the chosen and the rejected answer, of the pairs that are taken.
    """

    prompt: int
    origin: str
    question: str
    pictures: tuple[str, ...]
    seed: int
    answers: tuple[JudgedAnswer, ...]
    candidates: int
    pairs: tuple[tuple[int, int], ...]


class Records:
    """The record file of one run, open under its lock.

    Attributes:
        done: the records so far; number k is that of prompt k.
    """

    def __init__(self, file: BinaryIO, done: list[Record]) -> None:
        self._file = file
        self.done = done

    @classmethod
    @contextmanager
    def open(cls, path: Path, settings: Settings) -> Iterator[Records]:
        """Begin a file, or go on with one; a last line that was cut off is dropped.

        Args:
            path: the file; its folder is there.
            settings: all that decides what the records say.

        Raises:
            UsageError: J003 for a file begun with other settings, J004 for one that is damaged.
            RunError: J005 when another process writes it.
        """
        help = "wait for it, or give another --out"
        taken = RunError.one("J005", f"another process is writing {path}", help=help)
        with only_writer(path.with_name(f".{path.name}.lock"), lambda: taken):
            done = _read(path, settings) if path.is_file() else None
            with path.open("ab") as file:
                records = cls(file, done or [])
                if done is None:
                    records._write({"version": VERSION, "settings": settings})
                    fsync_dir(path.parent)
                yield records

    def append(self, record: Record) -> None:
        """Add the next prompt's record; it is on the disk when this returns."""
        self._write(record.model_dump())
        self.done.append(record)

    def _write(self, line: Mapping[str, object]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _read(path: Path, settings: Settings) -> list[Record] | None:
    """The records of a file that was begun with the same settings; None when not even its first line is whole."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    # Bytes are split, not text: answers may hold characters that only text takes for line ends.
    lines = content[:whole].splitlines()
    if not lines:
        return None
    _compare(path, _begun_with(path, lines[0]), json.loads(json.dumps(settings)))
    return [_record(path, number, line) for number, line in enumerate(lines[1:])]


def _begun_with(path: Path, line: bytes) -> Settings:
    """The settings that the first line of a file names."""
    try:
        head = json.loads(line)
    except ValueError:
        raise _damaged(path, 1) from None
    known = isinstance(head, dict) and head.get("version") == VERSION
    if not known or not isinstance(head.get("settings"), dict):
        raise _damaged(path, 1)
    settings: dict[str, object] = head["settings"]
    return settings


def _record(path: Path, number: int, line: bytes) -> Record:
    try:
        record = Record.model_validate_json(line)
    except ValidationError:
        raise _damaged(path, number + 2) from None
    if record.prompt != number:
        raise _damaged(path, number + 2)
    return record


def _damaged(path: Path, line: int) -> UsageError:
    message = f"{path} is damaged: line {line} is not the record that belongs there"
    return UsageError.one("J004", message, help="move it away to start anew, or give another --out")


def _compare(path: Path, recorded: Settings, wanted: Settings) -> None:
    """Refuse a file that was begun with other settings.

    Raises:
        UsageError: J003 with what differs.
    """
    differing = [
        f"{key} ({_short(recorded.get(key))} then, {_short(wanted.get(key))} now)"
        for key in dict.fromkeys([*wanted, *recorded])
        if recorded.get(key) != wanted.get(key)
    ]
    if differing:
        message = f"{path} was begun with other settings: {', '.join(differing)}"
        help = "give the settings it was begun with, or another --out to begin anew"
        raise UsageError.one("J003", message, help=help)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHORT else f"{text[: SHORT - 1]}…"
