"""Questions from a file in any format that qlmm reads; the answer of a row is left out.

Rows to train on must end with an answer. Here a row may end with its question. It is read as if a mark stood there,
so that every format's own rules still hold.

Usage: ``questions = read_questions(Source(path="prompts.jsonl"), limit=100)``
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from qlmm.core.errors import DataError, Problem
from qlmm.data.contract import Format, RawRow
from qlmm.data.errors import BadRow, MissingPicture
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.reading.dataset import check_images, detected, load_format
from qlmm.data.reading.readers import Resolve, picture_folder, read_rows
from qlmm.data.sample import ImageRef, Origin, Sample, Turn
from qlmm.recipe.schema import Source

__all__ = ["Questions", "read_questions"]

THE_OPTION = "is --image-root the folder that the paths start from?"


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of a file.

    Attributes:
        samples: conversations that end with a question, in the file's order, at most as many as were wanted.
        fingerprint: sha256 over the questions of the whole file and the names and sizes of their pictures.
    """

    samples: tuple[Sample, ...]
    fingerprint: str


def read_questions(source: Source, *, limit: int | None = None, resolve: Resolve = None, frames: int = 8) -> Questions:
    """Read the questions of a file; pictures of those that are wanted are checked, too.

    Args:
        source: the file, folder or data set, and where its pictures are.
        limit: how many of the first questions are wanted; None takes all.
        resolve: gives the file or folder of a ``builtin:`` name.
        frames: most pictures that a video is shown as.

    Raises:
        DataError: D001 with every bad row, D002 and D003 when there is nothing to read, D004 for rows of no known
            format, D007 when no question is there.
    """
    images = ImageRoot(picture_folder(source, resolve=resolve), max_frames=frames)
    digest, samples, problems = hashlib.sha256(), [], []
    form: Format | None = None
    for number, (origin, row) in enumerate(read_rows(source, resolve=resolve)):
        try:
            if isinstance(row, BadRow):
                raise row
            form = form or _format(row, source)
            sample = _question(form, row, images, origin)
            digest.update(json.dumps(_identity(sample), ensure_ascii=False).encode() + b"\n")
            if limit is None or number < limit:
                check_images(sample.images)
                samples.append(sample)
        except MissingPicture as missing:
            problems.append(MissingPicture(missing.path, THE_OPTION).problem(origin))
        except BadRow as bad:
            problems.append(bad.problem(origin))
    if problems:
        raise DataError(problems)
    if not samples:
        message = f"no question in {source.path}: no row is there"
        raise DataError([Problem("D007", message, help="one row a question, in a format that `qlmm data check` knows")])
    return Questions(tuple(samples), digest.hexdigest())


def _format(row: RawRow, source: Source) -> Format:
    """The format that a row is in, named or detected."""
    name = source.format or detected(row, source.path, question=True)
    if name is None:
        keys = ", ".join(f"`{key}`" for key in islice(row, 8)) or "none"
        message = f"{source.path}: the rows are in no known format; their keys are {keys}"
        help = 'a row that works: {"messages": [{"role": "user", "content": "What is this?"}], "images": ["cat.jpg"]}'
        raise DataError.one("D004", message, help=help)
    return load_format(name)


def _question(form: Format, row: RawRow, images: ImageRoot, origin: Origin) -> Sample:
    """The row up to its last question."""
    return Sample(form.read(form.answered(row), images)[: -form.answers], origin)


def _identity(sample: Sample) -> list[list[object]]:
    """A question as the fingerprint sees it."""
    return [[turn.role, *_parts(turn)] for turn in sample.turns]


def _parts(turn: Turn) -> Iterator[object]:
    for part in turn.parts:
        if isinstance(part, str):
            yield part
        elif part.path is not None:
            yield {"name": part.path.name, "bytes": _size(part), "at": str(part.at)}
        else:
            yield {"sha256": hashlib.sha256(part.data or b"").hexdigest(), "at": str(part.at)}


def _size(ref: ImageRef) -> int:
    """Bytes of a picture's file; 0 for one that is not there, which only matters once it is asked about."""
    return os.path.getsize(ref.path) if ref.path is not None and ref.path.is_file() else 0
