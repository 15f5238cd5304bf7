"""Questions from a file in any format that qlmm reads; the answer of a row is left out.

A row may end with its question. It is read as if a mark stood for the answer, so that its format's rules still apply.

Usage: ``questions = read_questions(Source(path="prompts.jsonl"), limit=100)``
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from qlmm.core.errors import DataError, Problem
from qlmm.data.contract import Format
from qlmm.data.errors import BadRow, MissingPicture
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.reading.dataset import check_images, detect_format, identity, load_format
from qlmm.data.reading.readers import Resolve, picture_folder, read_rows
from qlmm.data.sample import Sample
from qlmm.recipe.schema import Source

__all__ = ["Questions", "read_questions"]

THE_OPTION = "is --image-root the folder that the paths start from?"


@dataclass(frozen=True, slots=True)
class Questions:
    """The first questions of a file, as conversations that end with one, and a fingerprint of all of them."""

    samples: tuple[Sample, ...]
    fingerprint: str


def read_questions(source: Source, *, limit: int | None = None, resolve: Resolve = None, frames: int = 8) -> Questions:
    """Read the questions of a source; of the first ``limit`` the pictures, too.

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
            form = form or load_format(source.format or detect_format(source.path, [row], question=True))
            sample = Sample(form.read(form.answered(row), images)[: -form.answers], origin)
            digest.update(identity(sample.turns, images.folder.resolve()))
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
