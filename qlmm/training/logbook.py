"""A run's events on disk: one JSON object per line in metrics.jsonl, each line whole or absent after a crash.

The event's kind stands under ``event``, its fields beside it. JSON has no word for a number that is not finite,
so a diverged loss is written as the string "nan" or "inf": the true value, in a file every reader accepts.

Usage: ``with Logbook(folder / "metrics.jsonl", start=0) as logbook: logbook(StepDone(...))``
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from qlmm.core import files
from qlmm.core.errors import RunError, Where
from qlmm.core.events import Answered, Evaluated, Event, Finished, PairsEvaluated, Resumed, Saved, StepDone, Warned

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Logbook", "read_metrics"]

KINDS: dict[str, type[Event]] = {
    "step": StepDone,
    "evaluated": Evaluated,
    "pairs_evaluated": PairsEvaluated,
    "saved": Saved,
    "resumed": Resumed,
    "warned": Warned,
    "answered": Answered,
    "finished": Finished,
}
NAMES = {kind: name for name, kind in KINDS.items()}


class Logbook:
    """A listener that appends every event to a file.

    Args:
        path: the file; created when missing.
        start: the step the run goes on from. Lines written after that step by a run that was cut are dropped,
            because the steps are about to be taken again and a curve must not run twice over the same ground.
            0 starts a new file.
    """

    def __init__(self, path: Path, *, start: int) -> None:
        kept = _until(read_metrics(path), start) if start and path.exists() else []
        files.atomic_write(path, b"".join(_line(event) for event in kept))
        # Unbuffered and opened for appending: each line reaches the system in one write, so a kill cannot tear it.
        self._file = path.open("ab", buffering=0)

    def __call__(self, event: Event) -> None:
        """Append one event; what a saved checkpoint stands for is on the disk before the run goes on."""
        self._file.write(_line(event))
        if isinstance(event, Saved | Finished):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Logbook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[Event]:
    """The events of a file that :class:`Logbook` wrote; a last line that a crash cut short is left out.

    Raises:
        RunError: L001 when any other line is not an event, which means that something else wrote the file.
    """
    return list(_events(path))


def _events(path: Path) -> Iterator[Event]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            yield _event(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            # ValidationError and JSONDecodeError are ValueErrors. Only the last piece has no line end after it.
            if number == len(lines):
                return
            where = Where(str(path), number, excerpt=line.decode("utf-8", "replace")[:100])
            raise RunError.one("L001", f"not an event: {_why(error)}", where=where, help="remove the line") from error


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return f"{type(error).__name__}: {error}"


def _event(raw: dict[str, Any]) -> Event:
    fields = dict(raw)
    return _reader(fields.pop("event")).validate_python(fields)


@functools.cache
def _reader(name: str) -> TypeAdapter[Event]:
    """Building one takes far longer than using it, and a long run has many lines."""
    return TypeAdapter(KINDS[name])


def _line(event: Event) -> bytes:
    fields = {"event": NAMES[type(event)], **asdict(event)}
    return json.dumps(_spelt_out(fields), allow_nan=False).encode("ascii") + b"\n"


def _spelt_out(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spelt_out(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _until(events: Sequence[Event], step: int) -> list[Event]:
    """What was written before the first event of a step that is to be taken again."""
    kept: list[Event] = []
    for event in events:
        if isinstance(event, StepDone | Evaluated | PairsEvaluated | Saved | Resumed | Finished) and event.step > step:
            break
        kept.append(event)
    return kept
