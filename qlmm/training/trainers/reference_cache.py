"""The reference's log-probabilities, computed when a pair is first met and remembered for every further epoch.

A run keeps them in its directory, so that a continued run finds those of the steps before. Each value was computed in
the batch that the seed puts the pair into first, so that a continued run goes on as the uninterrupted one would have.

Usage: ``cache = ReferenceCache(folder / "reference.jsonl", of=fingerprint, how=settings); cache.get(rows)``
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qlmm.core.errors import RunError, Where
from qlmm.core.files import atomic_write

__all__ = ["ReferenceCache"]

Logps = tuple[float, ...]


class ReferenceCache:
    """Values per row number, appended to a file as they come."""

    def __init__(self, path: Path, *, of: Mapping[str, str], how: Mapping[str, Any]) -> None:
        """Read a run's file, or begin one.

        `of` fingerprints what the values belong to; a file of something else is refused by RunError C005. `how` are
        settings that move their last bits; with other ones the values are computed anew.
        """
        header = {"of": dict(of), "how": json.loads(json.dumps(dict(how)))}
        self._values = _read(path, header) if path.exists() and path.stat().st_size else {}
        kept = [_line(row, value) for row, value in self._values.items()]
        atomic_write(path, "".join([json.dumps(header) + "\n", *kept]))
        self._file = path.open("a", encoding="ascii")

    def get(self, rows: Sequence[int]) -> list[Logps] | None:
        """The values of all rows, or None if one of them was not met yet."""
        return [self._values[row] for row in rows] if self._values.keys() >= set(rows) else None

    def put(self, rows: Sequence[int], values: Sequence[Logps]) -> list[Logps]:
        """Remember values; those that are known stay as they are. Returns the known value of each row."""
        for row, value in zip(rows, values, strict=True):
            if row not in self._values:
                self._values[row] = value
                self._file.write(_line(row, value))
        self._file.flush()
        return [self._values[row] for row in rows]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _line(row: int, value: Logps) -> str:
    return json.dumps({"row": row, "logps": list(value)}) + "\n"


def _read(path: Path, header: Mapping[str, Any]) -> dict[int, Logps]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    try:
        # A kill may have cut the last line short.
        found, *rest = [json.loads(line) for line in lines if line.endswith("\n")]
        other = [name for name, value in header["of"].items() if found["of"][name] != value]
        values = {int(line["row"]): tuple(float(one) for one in line["logps"]) for line in rest}
        how = found["how"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _refused(path, "is not a file of reference log-probabilities") from error
    if other:
        raise _refused(path, f"has reference log-probabilities of another {', '.join(other)}")
    return values if how == header["how"] else {}


def _refused(path: Path, why: str) -> RunError:
    return RunError.one("C005", f"{path.name} {why}", where=Where(str(path), 1), help="remove the file")
