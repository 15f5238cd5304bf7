"""The record of each finished prompt, on the disk before the next begins, so that a run can go on where it stopped.

The first line of the file has the run's settings; a file that was begun with others is refused.

Usage: ``with Records.open(path, settings) as records: records.append(record)``
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from qlmm.core.errors import RunError, UsageError
from qlmm.core.files import fsync_dir
from qlmm.core.secrets import shortened
from qlmm.core.staging import only_writer

__all__ = ["JudgedAnswer", "JudgedStatement", "Record", "Records", "Settings"]

SHORT = 40

Settings = Mapping[str, object]
"""All that decides the records, by name, as JSON values that are only compared."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Head(_Line):
    version: Literal[1] = 1
    settings: dict[str, object]


LineT = TypeVar("LineT", bound=_Line)


class JudgedStatement(_Line):
    """One statement of an answer, the judge's question, and how likely its yes and its no are."""

    statement: str
    question: str
    yes: float
    no: float
    refuted: bool


class JudgedAnswer(_Line):
    """One answer; an empty one has no ``score``."""

    text: str
    split_by: Literal["judge", "sentences"]
    statements: tuple[JudgedStatement, ...]
    score: int | None


class Record(_Line):
    """All that was found about one prompt.

    Attributes:
        prompt: its number, from 0.
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
    """The record file of one run, open under its lock; ``done`` has the records so far, in the order of prompts."""

    def __init__(self, file: BinaryIO, done: list[Record]) -> None:
        self._file = file
        self.done = done

    @classmethod
    @contextmanager
    def open(cls, path: Path, settings: Settings) -> Iterator[Records]:
        """Begin a file, or go on with one; a last line that was cut off is dropped.

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
                    records._write(_Head(settings=dict(settings)))
                    fsync_dir(path.parent)
                yield records

    def append(self, record: Record) -> None:
        """Add the next prompt's record; it is on the disk when this returns."""
        self._write(record)
        self.done.append(record)

    def _write(self, line: _Line) -> None:
        self._file.write(json.dumps(line.model_dump(), ensure_ascii=False).encode("utf-8") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _read(path: Path, settings: Settings) -> list[Record] | None:
    """The records of a file that was begun with the same settings; None when not even its first line is whole."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    # Bytes are split, not text: answers may have characters that end a line only in text.
    lines = content[:whole].splitlines()
    if not lines:
        return None
    _compare(path, _parsed(_Head, path, 1, lines[0]).settings, json.loads(json.dumps(settings)))
    records = [_parsed(Record, path, number, line) for number, line in enumerate(lines[1:], 2)]
    for place, record in enumerate(records):
        if record.prompt != place:
            raise _damaged(path, place + 2)
    return records


def _parsed(kind: type[LineT], path: Path, number: int, line: bytes) -> LineT:
    try:
        return kind.model_validate_json(line)
    except ValidationError:
        raise _damaged(path, number) from None


def _damaged(path: Path, line: int) -> UsageError:
    message = f"{path} is damaged: line {line} is not the record that belongs there"
    return UsageError.one("J004", message, help="move it away to start anew, or give another --out")


def _compare(path: Path, recorded: Settings, wanted: Settings) -> None:
    """Refuse a file that was begun with other settings: UsageError J003 lists what differs."""
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
    return shortened(text, SHORT)
