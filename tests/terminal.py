"""A terminal that tests can read, and one event of each kind to show on it.

Usage: ``with watched() as terminal: out.warn("odd")``
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

from qlmm.cli.output.console import out
from qlmm.core.events import Answered, Evaluated, Event, Finished, PairsEvaluated, Resumed, Saved, Warned
from tests.run_facts import step

EVERYTHING: list[Event] = [
    Resumed(1, "checkpoint-1"),
    Answered("before", 8),
    step(2),
    Evaluated(2, {"right": 4.0, "shuffled": 4.5, "none": 5.0}),
    PairsEvaluated(2, 0.5, 1.0, None, None, None),
    Saved(2, "checkpoint-2"),
    Warned("something odd"),
    Finished(2, 75.0),
]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def watched() -> Iterator[Terminal]:
    """Stderr as somebody's terminal; put in place within the test, because pytest swaps streams between phases."""
    with contextlib.redirect_stderr(Terminal()) as stream:
        yield stream
        out.close()
