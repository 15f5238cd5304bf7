"""A recipe's source -> rows with their origin, from files, folders and data sets of the Hub.

Usage: ``for origin, row in read_rows(Source(path="rows.jsonl")): ...``
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

from qlmm.core.errors import DataError
from qlmm.data.contract import messages_in_text
from qlmm.data.errors import BadRow
from qlmm.data.reading.tables import DEFAULT_SPLIT, hub_rows, parquet_rows, saved_rows
from qlmm.data.reading.text_files import Row, csv_rows, json_rows
from qlmm.recipe.schema import Source

__all__ = ["Resolve", "picture_folder", "read_rows"]

# `builtin:<name>` -> file or folder; the packaged data live in the model layer, which data may not import.
Resolve = Callable[[str], Path] | None

BUILTIN = "builtin:"
MOST_NAMED = 8
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SAVED = ("dataset_dict.json", "state.json")
KINDS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*KINDS, *(f"{kind}.gz" for kind in KINDS[1:]))
# In the names of files and folders; a file of another split is not taken by chance.
SPLITS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation"}
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
        for origin, row in islice(found, source.limit):
            yield origin, row if isinstance(row, BadRow) else messages_in_text(row)
    except OSError as error:
        raise DataError.one("D003", f"{source.path} cannot be read: {error.strerror or error}") from error


def picture_folder(source: Source, *, resolve: Resolve = None) -> Path:
    """The folder that the source's picture names are relative to: the recipe's, else that of the rows."""
    if source.image_root is not None:
        return Path(source.image_root).expanduser()
    path = _located(source, resolve)
    if path is None:
        return Path()
    if not path.is_dir():
        return path.parent
    metadata = _metadata(path, source.split)
    return path if metadata is None else metadata.parent


def _located(source: Source, resolve: Resolve) -> Path | None:
    """The source's file or folder; None for a data set of the Hub."""
    if source.path.startswith(BUILTIN):
        if resolve is None:
            raise DataError.one("D002", f"{source.path}: packaged data cannot be named here")
        return resolve(source.path.removeprefix(BUILTIN))
    path = Path(source.path).expanduser()
    if path.exists():
        return path
    if HUB_ID.fullmatch(source.path) and not source.path.lower().endswith(SUFFIXES):
        return None
    raise DataError.one("D002", f"no such file or folder: {source.path}", help=_nearby(path))


def _nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either; paths are relative to the folder you are in"
    data = sorted(entry.name for entry in path.parent.iterdir() if entry.name.lower().endswith(SUFFIXES))
    return f"{path.parent} has {', '.join(data[:5])}" if data else f"{path.parent} has no data file"


def _metadata(folder: Path, split: str | None) -> Path | None:
    """The file that describes the pictures of a folder, or of the split's folder in it; names start beside it."""
    places = (folder, folder / (split or DEFAULT_SPLIT))
    return next((place / name for place in places for name in METADATA if (place / name).is_file()), None)


def _folder_rows(path: Path, source: Source) -> Iterator[Row]:
    metadata = _metadata(path, source.split)
    if metadata is None and any((path / name).is_file() for name in SAVED):
        return saved_rows(path, source.path, source.split)
    files = [metadata] if metadata else _shards(path, source)
    return chain.from_iterable(
        _file_rows(file, f"{source.path.rstrip('/')}/{file.relative_to(path).as_posix()}") for file in files
    )


def _shards(path: Path, source: Source) -> list[Path]:
    """The data files of a split in a folder or in its `data` folder: one, or several that differ in numbers only."""
    wanted = source.split or DEFAULT_SPLIT
    for place in (path, path / "data", path / wanted):
        listed = sorted(place.iterdir()) if place.is_dir() else []
        found = [file for file in listed if file.is_file() and file.name.lower().endswith(SUFFIXES)]
        first = next((kind for kind in KINDS if any(_kind(file) == kind for file in found)), None)
        found = [file for file in found if _kind(file) == first]
        words = {file: set(re.split("[^a-z]+", file.name.lower())) for file in found}
        of_split = [file for file in found if wanted.lower() in words[file]]
        others = sorted(SPLITS.intersection(*[set().union(*words.values())]))
        if place.name != wanted:
            if found and not of_split and (source.split or others):
                help = f"name one: split: {others[0]}" if others else "leave `split` out"
                raise DataError.one("D003", f"the folder {place} has no file of the split `{wanted}`", help=help)
            found = of_split or found
        if len({re.sub(r"\d+", "", file.name) for file in found}) > 1:
            names = ", ".join(file.name for file in found[:MOST_NAMED])
            raise DataError.one("D003", f"the folder {place} has several data files", help=f"name one: {names}")
        if found:
            return found
    inner = sorted({file.parent.name for file in path.glob("*/*") if file.name.lower().endswith(SUFFIXES)})
    help = f"a picture folder needs {' or '.join(METADATA)} (columns file_name and text); or name one data file"
    help = f"name one of its folders: {', '.join(inner[:MOST_NAMED])}" if inner else help
    raise DataError.one("D003", f"the folder {source.path} has no data file, metadata or saved data set", help=help)


def _kind(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _file_rows(path: Path, name: str) -> Iterator[Row]:
    kind = _kind(path)
    if kind in (".json", ".jsonl", ".ndjson"):
        return json_rows(path, name)
    if kind in (".csv", ".tsv"):
        return csv_rows(path, name)
    if kind == ".parquet":
        return parquet_rows(path, name)
    raise DataError.one("D003", f"{name}: unknown kind of file", help=f"known: {', '.join(SUFFIXES)}")
