"""A run's events on disk: one JSON object per line in metrics.jsonl, each line whole or absent after a crash.

The event's kind stands under ``event``, its fields beside it. JSON has no word for a number that is not finite,
so a diverged loss is written as the string "nan" or "inf": the true value, in a file every reader accepts.

Usage: ``with open_logbook(folder / "metrics.jsonl", start=0) as write: write(StepDone(...))``
"""

from __future__ import annotations

import errno
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qlmm.core import files
from qlmm.core.errors import RunError, Where
from qlmm.core.events import (
    Answered,
    Evaluated,
    Event,
    Finished,
    PairsEvaluated,
    Resumed,
    RowLeftOut,
    Saved,
    StepDone,
    StepSkipped,
    Warned,
)
from qlmm.core.secrets import redact_values, shortened

__all__ = ["open_logbook", "read_metrics"]

KINDS: dict[str, type[Event]] = {
    "step": StepDone,
    "skipped": StepSkipped,
    "row_left_out": RowLeftOut,
    "evaluated": Evaluated,
    "pairs_evaluated": PairsEvaluated,
    "saved": Saved,
    "resumed": Resumed,
    "warned": Warned,
    "answered": Answered,
    "finished": Finished,
}
NAMES = {kind: name for name, kind in KINDS.items()}


@contextmanager
def open_logbook(path: Path, *, start: int) -> Iterator[Callable[[Event], None]]:
    """A listener that appends every event to a file; what a sealed checkpoint stands for is on the disk with it.

    Lines that a cut run wrote after step `start` are dropped: these steps are taken again, and a curve must not run
    twice over the same ground. A start at 0 begins a new file.
    """
    kept = _until(read_metrics(path), start) if start and path.exists() else []
    files.atomic_write(path, b"".join(_line(event) for event in kept))
    # Unbuffered and opened for appending: each line reaches the system in one write, so a kill cannot tear it.
    with path.open("ab", buffering=0) as file:

        def write(event: Event) -> None:
            line, end = _line(event), os.fstat(file.fileno()).st_size
            if file.write(line) != len(line):
                # The disk took a part of it; another line after that would make both unreadable.
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            if isinstance(event, Saved | Finished):
                os.fsync(file.fileno())

        yield write


def read_metrics(path: Path) -> list[Event]:
    """The events of a logbook; a last line that a crash cut short is left out.

    Raises:
        RunError: L001 when any other line is not an event, which means that something else wrote the file.
    """
    events: list[Event] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            fields = json.loads(line)
            events.append(_reader(fields.pop("event")).validate_python(fields))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # ValidationError and JSONDecodeError are ValueErrors. Only the last piece has no line end after it.
            if number == len(lines):
                break
            where = Where(str(path), number, excerpt=shortened(line.decode("utf-8", "replace"), 100))
            raise RunError.one("L001", f"not an event: {_why(error)}", where=where, help="remove the line") from error
    return events


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return f"{type(error).__name__}: {error}"


@functools.cache
def _reader(name: str) -> TypeAdapter[Event]:
    """Building one takes far longer than using it, and a long run has many lines."""
    return TypeAdapter(KINDS[name])


def _line(event: Event) -> bytes:
    fields = {"event": NAMES[type(event)], **asdict(event)}
    return json.dumps(redact_values(_spelt_out(fields)), allow_nan=False).encode("ascii") + b"\n"


def _spelt_out(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spelt_out(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _until(events: Sequence[Event], step: int) -> Iterator[Event]:
    """What was written before the first event of a step that is to be taken again."""
    of_a_step = StepDone | StepSkipped | RowLeftOut | Evaluated | PairsEvaluated | Saved | Resumed | Finished
    for event in events:
        if isinstance(event, of_a_step) and event.step > step:
            return
        yield event
