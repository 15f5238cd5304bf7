"""Rows of JSON, JSON lines and CSV files, gzipped or not, each with its line.

A damaged line costs that line; a byte order mark, CRLF line ends and blank lines cost nothing. Arrays are read entry by
entry, so that memory goes with the largest row. What a packed file may unpack to is limited by its own size.

Usage: ``for origin, row in json_rows(Path("a.jsonl"), "a.jsonl"): ...``
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from qlmm.core import naming
from qlmm.core.secrets import starred
from qlmm.data.contract import Format, RawRow
from qlmm.data.errors import BadRow
from qlmm.data.media.images import MAX_BYTES
from qlmm.data.sample import Origin

__all__ = ["Row", "csv_rows", "json_rows"]

FORMATS = "qlmm.data.formats"
LONGEST_LINE = 16 * 1024 * 1024
# One JSON value that is not a list is read whole: COCO's captions have 92 MB.
LARGEST_OBJECT = 192 * 1024 * 1024
# The largest picture, in base64.
LONGEST_FIELD = MAX_BYTES * 4 // 3 + 1024
# Packed rows of text were seen to unpack to 30 times their size, and gzip can reach 1,000.
MOST_UNPACKED, FREE = 100, 64 * 1024 * 1024
CHUNK = 256 * 1024
LONGEST_EXCERPT = 120
MARK = b"\xef\xbb\xbf"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
SEPARATORS = ",;\t|"
Row = tuple[Origin, RawRow | BadRow]
CUT_OFF = "the file is cut off or damaged: fetch it again"
AS_UTF_8 = "save the file as UTF-8; a spreadsheet calls it `CSV UTF-8`"
CUT_URL = re.compile(r"data:image/[\w.+;-]{1,80};base64")
GAP = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder(
    parse_constant=lambda name: None if name == "NaN" else float(name.replace("Infinity", "inf"))
)


def json_rows(path: Path, name: str) -> Iterator[Row]:
    """Rows of a JSON array, or of one JSON object per line; ``name`` is the file as the user named it."""
    return _whole(_json_rows(path, name), name)


def csv_rows(path: Path, name: str) -> Iterator[Row]:
    """Rows of a CSV file whose first line names the columns, and shows what separates them."""
    return _whole(_csv_rows(path, name), name)


def _whole(rows: Iterator[Row], name: str) -> Iterator[Row]:
    """The rows, up to where a packed file breaks or grows beyond all measure."""
    try:
        yield from rows
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield Origin(name, 1), BadRow(f"cannot be unpacked: {error}", CUT_OFF)
    except BadRow as bad:
        yield Origin(name, 1), bad


def _json_rows(path: Path, name: str) -> Iterator[Row]:
    with _opened(path) as stream:
        begins = _beginning(stream)
    with _opened(path) as stream:
        if begins == "list":
            yield from _array(stream, name)
        elif begins == "part":
            yield from _object_file(path, stream, name)
        else:
            yield from _lines(stream, name)


def _csv_rows(path: Path, name: str) -> Iterator[Row]:
    with _opened(path) as stream:
        wide = stream.read(2) in UTF_16
    with _opened(path) as stream:
        encoding = "utf-16" if wide else "utf-8-sig"
        text = io.TextIOWrapper(stream, encoding, errors="surrogateescape", newline="")
        yield from _table(map(_readable, text), name, "\t" if ".tsv" in path.name.lower() else ",")


def _readable(line: str) -> str:
    """A line, unless it has bytes that are no text: decoded line by line, the right one is named."""
    try:
        line.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) & 0xFF
        raise BadRow(f"not UTF-8 (byte 0x{byte:02x})", AS_UTF_8) from None
    return line


def _table(text: Iterator[str], name: str, usual: str) -> Iterator[Row]:
    """The records of a table, each with the line that it begins on."""
    header, reader = None, None
    while True:
        line = 1 if reader is None else reader.line_num + 1
        try:
            if reader is None:
                first = next(text, "")
                reader = csv.reader(chain([first], text), delimiter=_separator(first, usual), strict=True)
            fields = _next(reader)
        except csv.Error as error:
            yield Origin(name, line), BadRow(f"not CSV: {error}", "a quote inside quotes is written twice")
            continue
        except (BadRow, UnicodeDecodeError) as error:
            yield Origin(name, line), error if isinstance(error, BadRow) else BadRow(f"not text: {error}", AS_UTF_8)
            return
        if fields is None:
            return
        if header is None:
            header = fields
        elif len(fields := _data_urls(fields)) > len(header):
            yield Origin(name, line), BadRow(f"more fields than the header's {len(header)}")
        elif fields:
            yield Origin(name, line), dict(zip(header, [*fields, *[None] * (len(header) - len(fields))], strict=True))


def _data_urls(fields: list[str]) -> list[str]:
    """The fields, pictures that stand in them as data URLs without quotes put together again at their comma."""
    whole: list[str] = []
    for field in fields:
        if whole and CUT_URL.fullmatch(whole[-1]):
            whole[-1] += "," + field
        else:
            whole.append(field)
    return whole


def _next(reader: Any) -> list[str] | None:
    """The next record, of fields as long as the largest picture in base64: the limit belongs to the whole process."""
    before = csv.field_size_limit(LONGEST_FIELD)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)


def _separator(header: str, usual: str) -> str:
    """What separates the names of columns: what usually does, or, where that does not occur, the most frequent."""
    bare = re.sub(r'"[^"]*"', "", header)
    return max(SEPARATORS, key=bare.count) if usual not in bare and any(one in bare for one in SEPARATORS) else usual


class _Unpacked(io.RawIOBase):
    """The bytes of a packed file, as long as they are no more than one of its size can have."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._stream = gzip.open(path, "rb")  # noqa: SIM115
        self._left = max(FREE, MOST_UNPACKED * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        got = self._stream.readinto(buffer)
        self._left -= got
        if self._left < 0:
            raise BadRow(f"the file unpacks to more than {MOST_UNPACKED} times its size", "unpack it: gunzip FILE")
        return got

    def close(self) -> None:
        self._stream.close()
        super().close()


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Unpacked(path))) if path.suffix.lower() == ".gz" else path.open("rb")


def _beginning(stream: BinaryIO) -> str:
    """What a file of JSON begins with: a ``list``, a ``part`` of an object, or else a ``line``."""
    first = stream.readline(CHUNK).removeprefix(MARK)
    while first and not first.strip():
        first = stream.readline(CHUNK)
    if first.lstrip().startswith(b"["):
        return "list"
    first += b"" if first.endswith(b"\n") else stream.readline(LONGEST_LINE - len(first))
    text = first.decode("utf-8", errors="replace").rstrip()
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return "part" if text.startswith("{") and (error.pos >= len(text) or len(first) == LONGEST_LINE) else "line"
    except (ValueError, RecursionError):
        pass
    return "line"


def _object_file(path: Path, stream: BinaryIO, name: str) -> Iterator[Row]:
    """The rows of one object that is spread over lines; a file that does not hold one is read as lines."""
    raw = stream.read(LARGEST_OBJECT + 1)
    value = _Broken("too large") if len(raw) > LARGEST_OBJECT else _parsed(raw)
    if isinstance(value, BadRow):
        with _opened(path) as again:
            yield from _lines(again, name)
    elif (found := _rows_of(value)) is not None:
        yield from ((Origin(name, number), row) for number, row in enumerate(found, 1))
    else:
        keys = ", ".join(list(value)[:5]) if isinstance(value, dict) else ""
        reason = f"the file is one object ({keys}), not rows"
        yield Origin(name, 1), BadRow(reason, "write a list [{…}, {…}], or one object per line")


def _rows_of(value: object) -> Iterator[RawRow | BadRow] | None:
    """The rows of an object that is a whole file in one of the formats; None for any other value."""
    forms = (naming.load(FORMATS, name, "FORMAT", Format) for name in naming.names(FORMATS))
    found = (form.rows(value) for form in forms if isinstance(value, dict))
    return next((rows for rows in found if rows is not None), None)


def _array(stream: BinaryIO, name: str) -> Iterator[Row]:
    for number, entry in enumerate(_entries(_Window(stream)), 1):
        yield Origin(name, entry.line if isinstance(entry, _Broken) else number), _object(entry)


def _entries(window: _Window) -> Iterator[object]:
    """The entries of a JSON list, one after another; a ``_Broken`` where it breaks, and nothing after that."""
    expected = "["
    while window.next() == expected:
        window.at += 1
        if expected == "[" and window.next() == "]":
            break
        value = window.value()
        yield value
        if isinstance(value, _Broken):
            return
        expected = ","
    closed = window.next() == "]"
    window.at += closed
    if not closed or window.next():
        yield window.broken(window.at, "broken JSON: " + ("Extra data" if closed else "Expecting ',' delimiter"))


class _Window:
    """The part of a text that is being read: what was read is dropped, and more comes when it is needed."""

    def __init__(self, stream: BinaryIO) -> None:
        self.at = 0
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._lines_before = 0
        self._ended = False
        self._damage: UnicodeDecodeError | None = None

    def next(self) -> str:
        """The next character after blank space, or nothing at the end."""
        while True:
            self.at = cast(re.Match[str], GAP.match(self._text, self.at)).end()
            if self.at < len(self._text) or self._ended:
                return self._text[self.at : self.at + 1]
            self._more()

    def value(self) -> object:
        """The next JSON value, or a ``_Broken``."""
        self.next()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self.at)
                if end < len(self._text) or self._ended:
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended or len(self._text) - self.at > LONGEST_LINE:
                    return self.broken(error.pos, f"broken JSON: {error.msg}")
            except RecursionError:
                return self.broken(self.at, "broken JSON: nested too deeply")
            except ValueError as error:
                return self.broken(self.at, f"broken JSON: {error}")
            self._more()

    def broken(self, at: int, reason: str) -> _Broken:
        """What is wrong at a place of the text."""
        if self._damage is not None:
            bad = _not_utf_8(self._text, self._text, self._damage)
        else:
            before = self._text[:at]
            bad = _broken(self._text, before.count("\n") + 1, at - before.rfind("\n"), reason)
        bad.line += self._lines_before
        return bad

    def _more(self) -> None:
        """Read on, as much again as there is; the line that is being read stays whole where it is short."""
        start = self._text.rfind("\n", 0, self.at) + 1
        start = start if self.at - start < LONGEST_EXCERPT else self.at
        self._lines_before += self._text.count("\n", 0, start)
        self._text, self.at = self._text[start:], self.at - start
        raw = self._stream.read(max(CHUNK, len(self._text)))
        self._ended = not raw
        try:
            self._text += self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            self._text += error.object[: error.start].decode("utf-8")
            self._damage, self._ended = error, True


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
            found = _rows_of(parsed) if number == 1 else None
            yield from ((origin, row) for row in found) if found is not None else [(origin, _object(parsed))]


class _Broken(BadRow):
    """Text that is not JSON, with the line inside the text where it breaks."""

    line: int = 1


def _parsed(raw: bytes) -> object:
    """The value of JSON bytes, or a ``_Broken`` with the place where they break."""
    text = raw.removeprefix(MARK).decode("utf-8", errors="replace")
    try:
        return DECODER.decode(raw.removeprefix(MARK).decode("utf-8"))
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode("utf-8")
        return _not_utf_8(text, before, error)
    except json.JSONDecodeError as error:
        return _broken(text, error.lineno, error.colno, f"broken JSON: {error.msg}")
    except RecursionError:
        return _broken(text, 1, None, "broken JSON: nested too deeply")
    except ValueError as error:
        return _broken(text, 1, None, f"broken JSON: {error}")


def _not_utf_8(text: str, before: str, error: UnicodeDecodeError) -> _Broken:
    """The byte that is not text, which follows on ``before``."""
    column = len(before) - before.rfind("\n")
    bad = _broken(text, before.count("\n") + 1, column, f"not UTF-8 (byte 0x{error.object[error.start]:02x})")
    bad.help = AS_UTF_8
    return bad


def _broken(text: str, line: int, column: int | None, reason: str) -> _Broken:
    """The line, a long one cut around ``column``, and the column's place in what is left."""
    lines = text.split("\n", line)
    # Before it is cut: half a key would not be known for one.
    excerpt = starred(lines[line - 1].rstrip("\r")) if line <= len(lines) else ""
    start = max(0, (column or 1) - LONGEST_EXCERPT // 2) if len(excerpt) > LONGEST_EXCERPT else 0
    excerpt, column = excerpt[start : start + LONGEST_EXCERPT], None if column is None else column - start
    bad = _Broken(reason, "one JSON object per line, or one JSON list", column=column, excerpt=excerpt)
    bad.line = line
    return bad


def _object(entry: object) -> RawRow | BadRow:
    if isinstance(entry, (dict, BadRow)):
        return entry
    return BadRow(f"a row must be an object {{…}}, this is a {type(entry).__name__}")
