"""Questions from a file in any format that qlmm reads; the answer of a row is left out.

Rows to train on must end with an answer. Here a row may end with its question. It is read as if a mark stood there,
so that every format's own rules still hold.

Usage: ``questions = read_questions(Source(path="prompts.jsonl"), limit=100)``
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from qlmm.core.errors import DataError, Problem
from qlmm.data.contract import BadRow, Format, present
from qlmm.data.media.images import BadImage, check
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.reading.dataset import format_names, load_format
from qlmm.data.reading.readers import Resolve, picture_folder, read_rows
from qlmm.data.sample import ImageRef, Origin, Sample, Turn
from qlmm.recipe.schema import Source

__all__ = ["Questions", "read_questions"]

ANSWER = "-"


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
                _check_pictures(sample)
                samples.append(sample)
        except BadRow as bad:
            problems.append(bad.problem(origin))
    if problems:
        raise DataError(problems)
    if not samples:
        message = f"no question in {source.path}: no row is there"
        raise DataError([Problem("D007", message, help="one row a question, in a format that `qlmm data check` knows")])
    return Questions(tuple(samples), digest.hexdigest())


def _format(row: Mapping[str, Any], source: Source) -> Format:
    """The format that claims a row."""
    answered = _answered(row)
    names = [source.format] if source.format else format_names()
    claims = (form for form in map(load_format, names) if form.claims(answered))
    found = next(claims, None)
    if found is None:
        keys = ", ".join(f"`{key}`" for key in islice(row, 8)) or "none"
        message = f"{source.path}: the rows are in no known format; their keys are {keys}"
        help = 'a row that works: {"messages": [{"role": "user", "content": "What is this?"}], "images": ["cat.jpg"]}'
        raise DataError.one("D004", message, help=help)
    return found


def _question(form: Format, row: Mapping[str, Any], images: ImageRoot, origin: Origin) -> Sample:
    """The row up to its last question."""
    turns = form.read(_answered(row), images)
    return Sample(turns[: -2 if form.kind == "preference" else -1], origin)


def _answered(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row, with a mark for an answer where it ends with its question."""
    for key, speaker, asks, said in (
        ("messages", "role", "user", {"role": "assistant", "content": ANSWER}),
        ("conversations", "from", "human", {"from": "gpt", "value": ANSWER}),
    ):
        turns = row.get(key)
        if _open(turns, speaker, asks):
            return {**row, key: [*turns, said]}  # type: ignore[misc]  # `_open` has seen that it is a list
    asked_only = present(row, "prompt") and not any(present(row, key) for key in ("completion", "chosen", "messages"))
    return {**row, "completion": ANSWER} if asked_only else row


def _open(turns: Any, speaker: str, asks: str) -> bool:
    """Whether turns end with a question."""
    if not isinstance(turns, Sequence) or not turns or not isinstance(turns[-1], Mapping):
        return False
    return bool(turns[-1].get(speaker) == asks)


def _check_pictures(sample: Sample) -> None:
    for ref in sample.images:
        if ref.path is not None and not ref.path.is_file():
            raise BadRow(f"picture {ref.path.name} is missing", "is --image-root the folder that the paths start from?")
        try:
            check(ref)
        except BadImage as bad:
            raise BadRow(f"picture {ref.name}: {bad.reason}", "replace or remove the picture") from None


def _identity(sample: Sample) -> list[Any]:
    """A question as the fingerprint sees it."""
    return [[turn.role, *_parts(turn)] for turn in sample.turns]


def _parts(turn: Turn) -> Iterator[Any]:
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
