"""Rows that are left out of the loss, since their pictures cannot be read any more: as many as the recipe allows.

Usage: ``left_out = LeftOut(plan.spare, before, listener); left_out.add(step, problem)``
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from qlmm.core.errors import Problem, RunError
from qlmm.core.events import Listener, RowLeftOut
from qlmm.core.secrets import redact
from qlmm.data.batching.collators import gone
from qlmm.data.errors import Unreadable, put_back
from qlmm.data.media.images import BadImage
from qlmm.data.reading.dataset import Bad
from qlmm.training.logbook import read_metrics
from qlmm.training.plan import Plan

__all__ = ["LeftOut", "listed", "pictures_named", "rows_left_out"]


class LeftOut:
    """Counts rows, each once however often it comes back."""

    def __init__(self, most: float, bad: int, before: Iterable[RowLeftOut], listener: Listener) -> None:
        """Begin with the rows that were left out before; ``bad`` rows were never in the run."""
        self._most, self._bad, self._listener = most, bad, listener
        self._rows = {(one.file, one.line) for one in before}

    def add(self, step: int, problem: Problem) -> None:
        """Leave a row out; RunError D036 where no further row may be."""
        where = problem.where
        row = (where.file, where.line or 0) if where is not None else ("", 0)
        if row in self._rows:
            return
        if len(self._rows) >= self._most:
            help = f"{put_back(len(self._rows) + self._bad + 1)}. Checkpoints sealed before are intact."
            raise RunError([replace(problem, help=help)])
        self._rows.add(row)
        self._listener(RowLeftOut(step, *row, why=f"row {where}: {problem.message}"))


def listed(bad: Iterable[Bad]) -> str:
    """Rows that a run is started without as lines of JSON, each with its reason."""
    lines = [
        {"file": redact(one.origin.file), "line": one.origin.line, "why": redact(one.problem.message)} for one in bad
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def rows_left_out(metrics: Path) -> tuple[RowLeftOut, ...]:
    """The rows that were left out, by a run's log."""
    return tuple(one for one in read_metrics(metrics) if isinstance(one, RowLeftOut))


@contextmanager
def pictures_named(plan: Plan) -> Iterator[None]:
    """Turn a picture that cannot be read any more, and that no allowance is for, into D036 with its row."""
    help = "put the picture back, then start the same command again; checkpoints sealed before are intact"
    try:
        yield
    except BadImage as bad:
        rows = gone([*plan.pairs, *plan.held_out, *plan.train], bad)
        raise RunError([replace(next(iter(rows.values())), help=help)]) from bad
    except Unreadable as bad:
        raise RunError([replace(bad.problems[0], help=help)]) from bad
