"""Every refusal of qlmm, as data: what, where, why, what to do next.

Its code is for searching, its exit code separates "your input" (2) from "the run" (1).

Usage: ``raise RecipeError.one("R012", "unknown key `rank`", where=Where(file, 14, 5), help="did you mean `r`?")``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

__all__ = [
    "EXIT_CODES",
    "DataError",
    "ModelError",
    "NoTemplate",
    "NotVisionLanguage",
    "Problem",
    "QlmmError",
    "RecipeError",
    "RunError",
    "Unavailable",
    "UsageError",
    "Where",
]

MOST_PROBLEMS_SHOWN = 20
# How a command ends; with --json the same number is in the object that is printed.
EXIT_CODES = {
    0: "done",
    1: "failed: the run could not go on, a promise was broken, or a check did not hold",
    2: "refused: the request, the recipe or the rows are wrong; nothing was started or written",
    101: "a bug in qlmm",
    130: "stopped by Ctrl-C; a run has saved, and the same command continues it",
    143: "stopped by SIGTERM; a run has saved, and the same command continues it",
}


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a file, from 1, with the line itself; ``width`` characters are underlined, ``label`` follows them."""

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
    """One thing that is wrong: its code, one sentence, its place, the way out, and the key or option it is about."""

    code: str
    message: str
    where: Where | None = None
    help: str | None = None
    key: str | None = None

    @property
    def text(self) -> str:
        """The sentence, with the key that it is about before it."""
        return f"{self.key}: {self.message}" if self.key else self.message

    def render(self) -> str:
        """The problem as compilers print it, without colour."""
        lines = [f"error[{self.code}]: {self.text}"]
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


class QlmmError(Exception):
    """Base of everything qlmm raises on purpose; the command line prints it and leaves with ``exit_code``."""

    exit_code = 1

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems)
        self.problems = tuple(problems)

    @classmethod
    def one(
        cls, code: str, message: str, *, where: Where | None = None, help: str | None = None, key: str | None = None
    ) -> Self:
        """An error with a single problem."""
        return cls([Problem(code, message, where, help, key)])

    def with_problems(self, problems: Sequence[Problem]) -> Self:
        """An error of the same class and with the same further facts, about other problems."""
        other = type(self).__new__(type(self), problems)
        vars(other).update(vars(self), problems=tuple(problems))
        return other

    def about(self, key: str, help: str | None = None) -> Self:
        """The same refusal in the terms of another option, which named what was refused."""
        return self.with_problems([replace(one, key=key, help=help or one.help) for one in self.problems])

    @property
    def text(self) -> str:
        """The first problem in one line, without code and place."""
        return self.problems[0].text

    def __str__(self) -> str:
        shown = [problem.render() for problem in self.problems[:MOST_PROBLEMS_SHOWN]]
        hidden = [f"… and {len(self.problems) - len(shown)} more"] if len(self.problems) > len(shown) else []
        return "\n\n".join([*shown, *hidden])


class UsageError(QlmmError):
    """The request cannot be carried out as asked; nothing was started, nothing was written."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe, or an override of it, is wrong."""


class DataError(UsageError):
    """Rows or pictures are wrong, found before training."""


class ModelError(UsageError):
    """The base, a part of it or the adapter cannot be what the recipe asks for."""


class NoTemplate(ModelError):
    """A base that has no chat template, where none was given."""


class NotVisionLanguage(ModelError):
    """A base that is not a vision-language model whose parts are known."""


class Unavailable(ModelError):
    """A base, or a package it needs, cannot be had here. Nothing is known to be wrong with what was asked of it."""


class RunError(QlmmError):
    """A run that had started could not go on, or could not prove what it promised."""
