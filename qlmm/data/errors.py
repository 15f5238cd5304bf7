"""What is wrong with a row, as types: rows that cannot be read, and why rows that can be read are not learned from.

Usage: ``raise BadRow("no picture", "name one in `image`")``
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from qlmm.core.errors import DataError, Problem, Where
from qlmm.data.sample import Kind, Origin

__all__ = ["BadRow", "DropReason", "MissingPicture", "NoRowLeft", "OtherKind"]


class DropReason(Enum):
    """Why a row is left out. Each caller has its own words for it; nobody reads them back."""

    TOO_LONG = "too_long"
    NOTHING_LEARNED = "nothing_learned"
    BAD_ROW = "bad_row"
    NO_PICTURE = "no_picture"


class BadRow(Exception):
    """A row that cannot be learned from; raised by formats, collected with its origin by ``load_samples``.

    Attributes:
        reason: one sentence without a full stop.
        help: what to do, or one correct row.
        column: place in the line, from 1, where the file is text and the place is known.
        excerpt: the line, shortened, where it says more than the reason.
    """

    kind = DropReason.BAD_ROW

    def __init__(
        self, reason: str, help: str | None = None, *, column: int | None = None, excerpt: str | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.help = help
        self.column = column
        self.excerpt = excerpt

    def problem(self, origin: Origin) -> Problem:
        """The row's problem as every refusal of qlmm looks, with file and line."""
        return Problem("D001", self.reason, Where(origin.file, origin.line, self.column, self.excerpt), self.help)


class MissingPicture(BadRow):
    """A row that names a picture or video which is not there; all of a source are reported as one problem.

    Attributes:
        path: where the file should be.
    """

    kind = DropReason.NO_PICTURE

    def __init__(self, path: Path, help: str = "is `image_root` the folder that the paths start from?") -> None:
        super().__init__(f"picture {path.name} is missing", help)
        self.path = path


class NoRowLeft(DataError):
    """Every row of the sources was bad, or there was none; the first problem says so, the others say why."""


class OtherKind(DataError):
    """Rows of another kind than the caller learns from.

    Attributes:
        found: what the rows are.
    """

    def __init__(self, message: str, found: Kind) -> None:
        super().__init__([Problem("D010", message)])
        self.found = found
