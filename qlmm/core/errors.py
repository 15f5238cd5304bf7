"""Every refusal of qlmm, as data: what, where, why, what to do next.

An error carries a stable code, so that people can search for it and tests can name it,
and an exit code, so that scripts can tell "your input" (2) from "the run" (1).

Usage: ``raise RecipeError.one("R012", "unknown key `rank`", where=Where(file, 14, 5), help="did you mean `r`?")``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["DataError", "ModelError", "Problem", "QlmmError", "RecipeError", "RunError", "UsageError", "Where"]

MOST_PROBLEMS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a file. ``line`` and ``column`` count from 1; ``excerpt`` is the offending line itself.

    ``width`` characters are underlined, and ``label`` stands behind the underline.
    """

    file: str
    line: int | None = None
    column: int | None = None
    excerpt: str | None = None
    width: int = 1
    label: str = ""

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: a stable code, one sentence, and, where known, the place and the way out."""

    code: str
    message: str
    where: Where | None = None
    help: str | None = None

    def render(self) -> str:
        """The problem as compilers print it, without colour."""
        lines = [f"error[{self.code}]: {self.message}"]
        if self.where is not None:
            lines.append(f"  --> {self.where}")
            if self.where.excerpt is not None and self.where.line is not None:
                lines += _excerpt(self.where, self.where.excerpt)
        if self.help is not None:
            lines.append(f"help: {self.help}")
        return "\n".join(lines)


def _excerpt(where: Where, text: str) -> list[str]:
    gutter = " " * len(str(where.line))
    rows = [f"{gutter} |", f"{where.line} | {text}"]
    if where.column is not None:
        rows.append(f"{gutter} | {' ' * (where.column - 1)}{'^' * max(1, where.width)} {where.label}".rstrip())
    return rows


ErrorT = TypeVar("ErrorT", bound="QlmmError")


class QlmmError(Exception):
    """Base of everything qlmm raises on purpose; the command line prints it and leaves with ``exit_code``."""

    exit_code = 1

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems)
        self.problems = tuple(problems)

    @classmethod
    def one(
        cls: type[ErrorT], code: str, message: str, *, where: Where | None = None, help: str | None = None
    ) -> ErrorT:
        """An error with a single problem."""
        return cls([Problem(code, message, where, help)])

    def __str__(self) -> str:
        shown = [problem.render() for problem in self.problems[:MOST_PROBLEMS_SHOWN]]
        hidden = len(self.problems) - len(shown)
        if hidden > 0:
            shown.append(f"… and {hidden} more")
        return "\n\n".join(shown)


class UsageError(QlmmError):
    """The request cannot be carried out as asked; nothing was started, nothing was written."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe, or an override of it, is wrong."""


class DataError(UsageError):
    """Rows or pictures are wrong, found before training."""


class ModelError(UsageError):
    """The base, a part of it or the adapter cannot be what the recipe says."""


class RunError(QlmmError):
    """A run that had started could not go on, or could not prove what it promised."""
