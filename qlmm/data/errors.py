"""What is wrong with a row, as types.

Usage: ``raise BadRow("no picture", "name one in `image`")``
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from qlmm.core.errors import DataError, Problem, RunError, Where
from qlmm.data.sample import Kind, Origin

__all__ = ["BadRow", "DropReason", "MissingPicture", "NoRowLeft", "OtherKind", "Unreadable", "put_back"]


class DropReason(StrEnum):
    """Why a row is left out, as the plan counts them."""

    TOO_LONG = "over data.max_length"
    NOTHING_LEARNED = "nothing to learn"
    BAD_ROW = "bad row"
    PICTURE_HELD_OUT = "of a held-out picture"


class BadRow(Exception):
    """A row that cannot be learned from; raised by formats, collected with its origin by ``load_samples``.

    ``reason`` is one sentence without a full stop. ``column`` is the place in a line of text, from 1.
    """

    def __init__(
        self, reason: str, help: str | None = None, *, column: int | None = None, excerpt: str | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.help = help
        self.column = column
        self.excerpt = excerpt

    def problem(self, origin: Origin) -> Problem:
        """The row's problem with its file and line."""
        return Problem("D001", self.reason, Where(origin.file, origin.line, self.column, self.excerpt), self.help)


class MissingPicture(BadRow):
    """A row that names a picture or video which is not there; all of a source are reported as one problem."""

    def __init__(self, path: Path, help: str = "is `image_root` the folder that the paths start from?") -> None:
        super().__init__(f"picture {path.name} is missing", help)
        self.path = path


class NoRowLeft(DataError):
    """Every row of the sources was bad, or there was none; the problems after the first are the rows'."""


class OtherKind(DataError):
    """Rows of another kind than the caller learns from; ``found`` is theirs."""

    def __init__(self, message: str, found: Kind, help: str | None = None) -> None:
        super().__init__([Problem("D010", message, help=help)])
        self.found = found


class Unreadable(RunError):
    """Rows of a batch whose picture cannot be read any more, each by its place in the batch with its problem."""

    def __init__(self, rows: Mapping[int, Problem]) -> None:
        super().__init__(tuple(rows.values()))
        self.rows = rows


def put_back(most: int) -> str:
    """What to do about a picture that is gone, where so many rows are bad."""
    return (
        "put the picture back, then start the same command again; or let the run go on without such rows: "
        f"data.max_bad_rows={most}"
    )
