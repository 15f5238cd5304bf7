"""Rows of JSON, JSON lines and CSV files, gzipped or not, each with its line.

A damaged line costs that line; a byte order mark, CRLF line ends and blank lines cost nothing.

Usage: ``for origin, row in json_rows(Path("a.jsonl"), "a.jsonl"): ...``
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from qlmm.data.contract import RawRow
from qlmm.data.errors import BadRow
from qlmm.data.sample import Origin

__all__ = ["Row", "csv_rows", "json_rows"]

LONGEST_LINE = 16 * 1024 * 1024
LONGEST_EXCERPT = 120
MARK = b"\xef\xbb\xbf"
Row = tuple[Origin, RawRow | BadRow]
CUT_OFF = "the file is cut off or damaged: fetch it again"


def json_rows(path: Path, name: str) -> Iterator[Row]:
    """Rows of a JSON array, or of one JSON object per line; ``name`` is the file as the user named it."""
    try:
        if _is_one_value(path):
            yield from _array(path, name)
            return
        with _opened(path) as stream:
            yield from _lines(stream, name)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield Origin(name, 1), BadRow(f"cannot be unpacked: {error}", CUT_OFF)


def csv_rows(path: Path, name: str, delimiter: str = ",") -> Iterator[Row]:
    """Rows of a CSV file whose first line names the columns."""
    with _opened(path) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, delimiter=delimiter, strict=True)
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield Origin(name, reader.line_num), BadRow(f"not CSV: {error}")
                continue
            except (UnicodeDecodeError, EOFError, zlib.error) as error:
                yield Origin(name, reader.line_num + 1), BadRow(f"not readable as UTF-8 text: {error}", CUT_OFF)
                return
            if row is None:
                return
            extra = row.pop(None, None)  # csv puts surplus fields under None
            origin = Origin(name, reader.line_num)
            yield origin, row if extra is None else BadRow(f"more fields than the header's {len(row)}")


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _is_one_value(path: Path) -> bool:
    """Whether the file is a JSON list, or one object spread over lines, instead of an object per line."""
    with _opened(path) as stream:
        first = stream.readline(LONGEST_LINE).removeprefix(MARK)
        while first and not first.strip():
            first = stream.readline(LONGEST_LINE)
        if first.strip() != b"{":
            return first.lstrip().startswith(b"[")
        try:
            json.loads(first + stream.read())
        except (ValueError, RecursionError):
            return False
        return True


def _array(path: Path, name: str) -> Iterator[Row]:
    with _opened(path) as stream:
        entries = _parsed(stream.read())
    if isinstance(entries, _Broken):
        yield Origin(name, entries.line), entries
    elif isinstance(entries, list):
        for number, entry in enumerate(entries, 1):
            yield Origin(name, number), _object(entry)
    else:
        keys = ", ".join(list(entries)[:5]) if isinstance(entries, dict) else ""
        reason = f"the file is one object ({keys}), not rows"
        yield Origin(name, 1), BadRow(reason, "write a list [{…}, {…}], or one object per line")


def _lines(stream: BinaryIO, name: str) -> Iterator[Row]:
    number = 0
    while raw := stream.readline(LONGEST_LINE + 1):
        number += 1
        origin = Origin(name, number)
        if len(raw) > LONGEST_LINE:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(LONGEST_LINE)
            yield origin, BadRow(f"the line is longer than {LONGEST_LINE // 2**20} MiB", "keep pictures in files")
        elif raw.removeprefix(MARK).strip():
            parsed = _parsed(raw.rstrip(b"\r\n"))
            yield origin, parsed if isinstance(parsed, BadRow) else _object(parsed)


class _Broken(BadRow):
    """Text that is not JSON, with the line inside the text where it breaks."""

    line: int = 1


def _parsed(raw: bytes) -> object:
    """The value of JSON bytes, or a ``_Broken`` with the place where they break."""
    text = raw.removeprefix(MARK).decode("utf-8", errors="replace")
    try:
        return json.loads(raw.removeprefix(MARK).decode("utf-8"))
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8")) + 1
        return _broken(text, before.count(b"\n") + 1, column, f"not UTF-8 (byte 0x{error.object[error.start]:02x})")
    except json.JSONDecodeError as error:
        return _broken(text, error.lineno, error.colno, f"broken JSON: {error.msg}")
    except RecursionError:
        return _broken(text, 1, None, "broken JSON: nested too deeply")
    except ValueError as error:
        return _broken(text, 1, None, f"broken JSON: {error}")


def _broken(text: str, line: int, column: int | None, reason: str) -> _Broken:
    """The line, a long one cut around ``column``, and the column's place in what is left."""
    lines = text.split("\n", line)
    excerpt = lines[line - 1].rstrip("\r") if line <= len(lines) else ""
    start = max(0, (column or 1) - LONGEST_EXCERPT // 2) if len(excerpt) > LONGEST_EXCERPT else 0
    excerpt, column = excerpt[start : start + LONGEST_EXCERPT], None if column is None else column - start
    bad = _Broken(reason, "one JSON object per line, or one JSON list", column=column, excerpt=excerpt)
    bad.line = line
    return bad


def _object(entry: object) -> RawRow | BadRow:
    if isinstance(entry, dict):
        return entry
    return BadRow(f"a row must be an object {{…}}, this is a {type(entry).__name__}")
