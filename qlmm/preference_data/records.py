"""One line per finished prompt, on the disk before the next begins: an interrupted run goes on where it was.

The first line says what the run was asked; a file that was begun with anything else is refused.

Usage: ``with Records.open(path, settings) as records: records.append({"prompt": 0})``
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from qlmm.core.errors import RunError, UsageError
from qlmm.core.files import fsync_dir
from qlmm.core.lock import only_writer

__all__ = ["Records"]

VERSION = 1
SHORT = 40


class Records:
    """The record file of one run, held open under its lock.

    Attributes:
        done: the records so far; number k is that of prompt k.
    """

    def __init__(self, file: BinaryIO, done: list[dict[str, Any]]) -> None:
        self._file = file
        self.done = done

    @classmethod
    @contextmanager
    def open(cls, path: Path, settings: Mapping[str, Any]) -> Iterator[Records]:
        """Begin a file, or go on with one; a last line that was cut off is dropped.

        Args:
            path: the file; its folder is there.
            settings: everything that decides what the records say, as JSON.

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

    def append(self, record: dict[str, Any]) -> None:
        """Add the next prompt's record; it is on the disk when this returns."""
        self._write(record)
        self.done.append(record)

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _read(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The records of a file that was begun with the same settings; None when not even its first line is whole."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    lines = [_parsed(path, number, line) for number, line in enumerate(content[:whole].splitlines(), 1)]
    if not lines:
        return None
    head, done = lines[0], lines[1:]
    if not isinstance(head.get("settings"), dict) or head.get("version") != VERSION:
        raise _damaged(path, 1)
    _compare(path, head["settings"], json.loads(json.dumps(settings)))
    for number, record in enumerate(done):
        if record.get("prompt") != number:
            raise _damaged(path, number + 2)
    return done


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        raise _damaged(path, number) from None
    if not isinstance(found, dict):
        raise _damaged(path, number)
    return found


def _damaged(path: Path, line: int) -> UsageError:
    message = f"{path} is damaged: line {line} is not the record that belongs there"
    return UsageError.one("J004", message, help="move it away to start anew, or give another --out")


def _compare(path: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
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
        raise UsageError.one(
            "J003",
            f"{path} was begun with other settings: {', '.join(differing)}",
            help="give the settings it was begun with, or another --out to begin anew",
        )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHORT else f"{text[: SHORT - 1]}…"
