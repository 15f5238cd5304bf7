"""The reference's log-probabilities, computed when a pair is first met and remembered for every further epoch.

A run keeps them in its directory, so that a continued run finds those of the steps before. Each value was computed in
the batch that the seed puts the pair into first, so that a continued run goes on as the uninterrupted one would have.

Usage: ``cache = ReferenceCache.open(folder / "reference.jsonl", of=fingerprint, how=settings); cache.get(rows)``
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from qlmm.core.errors import RunError, Where
from qlmm.core.files import atomic_write

__all__ = ["ReferenceCache"]


class ReferenceCache:
    """Values per row number, appended to a file as they come."""

    def __init__(self, path: Path, values: dict[int, tuple[float, ...]]) -> None:
        self._values = values
        self._file: TextIO = path.open("a", encoding="ascii")

    @classmethod
    def open(cls, path: Path, *, of: Mapping[str, str], how: Mapping[str, Any]) -> ReferenceCache:
        """Read a run's file, or begin one.

        Args:
            path: the file.
            of: fingerprints of what the values belong to: base, adapter, data, processor.
            how: settings that move their last bits; with other ones the values are computed anew.

        Raises:
            RunError: C005 when the file belongs to another base, adapter, data or processor, or is no such file.
        """
        header = {"of": dict(of), "how": json.loads(json.dumps(dict(how)))}
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
        values = _read(path, lines, header) if lines else {}
        kept = [{"row": row, "logps": list(value)} for row, value in values.items()]
        atomic_write(path, "".join(json.dumps(line) + "\n" for line in (header, *kept)))
        return cls(path, values)

    def get(self, rows: Sequence[int]) -> list[tuple[float, ...]] | None:
        """The values of all rows, or None if one of them was not met yet."""
        found = [self._values.get(row) for row in rows]
        known = [value for value in found if value is not None]
        return known if len(known) == len(found) else None

    def put(self, rows: Sequence[int], values: Sequence[tuple[float, ...]]) -> None:
        """Remember values; those that are known stay as they are."""
        for row, value in zip(rows, values, strict=True):
            if row not in self._values:
                self._values[row] = value
                self._file.write(json.dumps({"row": row, "logps": list(value)}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _read(path: Path, lines: Sequence[str], header: dict[str, Any]) -> dict[int, tuple[float, ...]]:
    whole = [line for line in lines if line.endswith("\n")]
    try:
        found, *rest = [json.loads(line) for line in whole]
        other = [name for name, value in header["of"].items() if found["of"][name] != value]
        values = {int(line["row"]): tuple(float(one) for one in line["logps"]) for line in rest}
        how = found["how"]
    except (ValueError, KeyError, TypeError) as error:
        raise _refused(path, "is not a file of reference log-probabilities") from error
    if other:
        raise _refused(path, f"holds reference log-probabilities of another {', '.join(other)}")
    return values if how == header["how"] else {}


def _refused(path: Path, why: str) -> RunError:
    return RunError.one("C005", f"{path.name} {why}", where=Where(str(path), 1), help="remove the file")
