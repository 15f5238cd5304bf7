"""Rows of columnar data: parquet files, folders saved by ``datasets``, data sets of the Hub; pictures stay encoded.

Usage: ``for origin, row in parquet_rows(Path("a.parquet"), "a.parquet"): ...``
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qlmm.core.errors import DataError
from qlmm.data.reading.text_files import Row
from qlmm.data.sample import ImageRef, Origin

__all__ = ["DEFAULT_SPLIT", "hub_rows", "parquet_rows", "saved_rows"]

BATCH = 256
DEFAULT_SPLIT = "train"
OFFLINE = "HF_HUB_OFFLINE is set: only data sets already in the cache can be read"
ONLINE = "check the path or the id; private data sets need `hf auth login`"


def parquet_rows(path: Path, name: str) -> Iterator[Row]:
    """Rows of a parquet file; DataError D003 when it is not one or is damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            yield from _numbered(table.iter_batches(BATCH), name, ())
    except (pyarrow.ArrowException, OSError) as error:
        message = f"{name} is not a whole parquet file: {error}"
        raise DataError.one("D003", message, help="fetch the file again") from error


def saved_rows(path: Path, name: str, split: str | None) -> Iterator[Row]:
    """Rows of a folder written by ``save_to_disk``; DataError D003 when it is damaged or has no such split."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError.one("D003", f"{name} is not a data set saved by `datasets`: {error}") from error
    if isinstance(saved, datasets.DatasetDict):
        wanted = split or DEFAULT_SPLIT
        if wanted not in saved:
            raise DataError.one("D003", f"{name} has no split `{wanted}`", help=f"it has {', '.join(saved)}")
        saved = saved[wanted]
    yield from _numbered(saved.with_format("arrow").iter(BATCH), name, ())


def hub_rows(name: str, split: str | None) -> Iterator[Row]:
    """Rows of a data set of the Hub, cached by ``datasets``; ``id@revision`` pins it; DataError D003 without one."""
    import datasets
    from huggingface_hub import constants

    dataset, _, revision = name.partition("@")
    try:
        table = datasets.load_dataset(dataset, split=split or DEFAULT_SPLIT, revision=revision or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        message = f"{name} is neither on disk nor a data set within reach: {reason[0]}"
        raise DataError.one("D003", message, help=OFFLINE if constants.HF_HUB_OFFLINE else ONLINE) from error
    cache = (Path(constants.HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE))
    yield from _numbered(table.with_format("arrow").iter(BATCH), name, cache)


def _numbered(batches: Iterable[Any], name: str, cache: tuple[Path, ...]) -> Iterator[Row]:
    for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
        yield Origin(name, number), {key: _cached(value, cache) for key, value in row.items()}


def _cached(value: object, cache: tuple[Path, ...]) -> object:
    """A value, pictures that `datasets` keeps as files of its own cache turned into references.

    Absolute paths are safe only there: the row does not choose what lies in the cache.
    """
    if isinstance(value, list):
        return [_cached(entry, cache) for entry in value]
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"} and value["bytes"] is None and value["path"]:
        real = os.path.realpath(value["path"])
        if any(real.startswith(os.path.join(os.path.realpath(folder), "")) for folder in cache):
            return ImageRef(path=Path(real))
    return value
