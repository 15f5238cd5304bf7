"""A recipe's source -> rows with their origin, from files, folders and data sets of the Hub.

Usage: ``for origin, row in read_rows(Source(path="rows.jsonl")): ...``
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from qlmm.core.errors import DataError
from qlmm.data.reading.tables import hub_rows, parquet_rows, saved_rows
from qlmm.data.reading.text_files import Row, csv_rows, json_rows
from qlmm.recipe.schema import Source

__all__ = ["Resolve", "picture_folder", "read_rows"]

# `builtin:<name>` -> file or folder; the packaged data live in the model layer, which data may not import.
Resolve = Callable[[str], Path] | None

BUILTIN = "builtin:"
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SAVED = ("dataset_dict.json", "state.json")
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".json.gz", ".jsonl.gz", ".csv.gz", ".tsv.gz")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[\w.-]+)?")


def read_rows(source: Source, *, resolve: Resolve = None) -> Iterator[Row]:
    """The rows of a source, at most ``source.limit``; a row that cannot be read is a ``BadRow`` in its place.

    Raises:
        DataError: D002 when nothing is there, D003 when what is there cannot be read at all.
    """
    path = _located(source, resolve)
    try:
        if path is None:
            found = hub_rows(source.path, source.split)
        else:
            found = _folder_rows(path, source) if path.is_dir() else _file_rows(path, source.path)
        yield from islice(found, source.limit)
    except OSError as error:
        raise DataError.one("D003", f"{source.path} cannot be read: {error.strerror or error}") from error


def picture_folder(source: Source, *, resolve: Resolve = None) -> Path:
    """The folder that the source's picture names are relative to: the recipe's, else that of the rows."""
    if source.image_root is not None:
        return Path(source.image_root).expanduser()
    path = _located(source, resolve)
    if path is None:
        return Path()
    return path if path.is_dir() else path.parent


def _located(source: Source, resolve: Resolve) -> Path | None:
    """The source's file or folder; None for a data set of the Hub."""
    if source.path.startswith(BUILTIN):
        if resolve is None:
            raise DataError.one("D002", f"{source.path}: packaged data cannot be named here")
        return resolve(source.path.removeprefix(BUILTIN))
    path = Path(source.path).expanduser()
    if path.exists():
        return path
    if HUB_ID.fullmatch(source.path) and not source.path.endswith(SUFFIXES):
        return None
    raise DataError.one("D002", f"no such file or folder: {source.path}", help=_nearby(path))


def _nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either; paths are relative to the folder you are in"
    data = sorted(entry.name for entry in path.parent.iterdir() if entry.name.endswith(SUFFIXES))
    return f"{path.parent} has {', '.join(data[:5])}" if data else f"{path.parent} has no data file"


def _folder_rows(path: Path, source: Source) -> Iterator[Row]:
    metadata = next((path / name for name in METADATA if (path / name).is_file()), None)
    if metadata is not None:
        return _file_rows(metadata, f"{source.path.rstrip('/')}/{metadata.name}")
    if any((path / name).is_file() for name in SAVED):
        return saved_rows(path, source.path, source.split)
    help = f"a picture folder needs {' or '.join(METADATA)} (columns file_name and text); or name one data file"
    raise DataError.one("D003", f"the folder {source.path} has no metadata and no saved data set", help=help)


def _file_rows(path: Path, name: str) -> Iterator[Row]:
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind in (".json", ".jsonl"):
        return json_rows(path, name)
    if kind in (".csv", ".tsv"):
        return csv_rows(path, name, "\t" if kind == ".tsv" else ",")
    if kind == ".parquet":
        return parquet_rows(path, name)
    raise DataError.one("D003", f"{name}: unknown kind of file", help=f"known: {', '.join(SUFFIXES)}")
