"""What lies between a collator and a training step: row numbers beside every batch, and workers that do not cut a run.

A worker leaves the end of a run to the process that trains: signals that ask for an end pass it by, and an error comes
back as a value, since a data loader would carry its text only. So does a row whose picture cannot be read.

Usage: ``batches = Batches(collator, training); batches.serve(loader.base_dataloader); map(received, iterator)``
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.sharedctypes import RawArray, RawValue
from typing import Any

from torch.utils.data import DataLoader, get_worker_info

from qlmm.core.errors import Problem, QlmmError, RunError
from qlmm.core.secrets import redact, shortened
from qlmm.core.signals import ASKING, blocked
from qlmm.data.batching.collators import Batch, Collator
from qlmm.data.errors import Unreadable

__all__ = ["PIECES", "ROWS", "Batches", "Bins", "Made", "received"]

# Where a batch has the numbers of its rows.
ROWS = "row_numbers"
# Where the trainer's batch has its pieces.
PIECES = "pieces"
LONGEST = 200
# Rows, and how many at most go together -> rows that go together.
Bins = Callable[[Sequence[int], int], list[list[int]]]


# The pieces of a batch, and why rows are in none of them.
Made = list[Batch | Problem]


@dataclass(frozen=True, slots=True)
class _Failed:
    """An error of a worker, with its trace as text."""

    error: QlmmError
    trace: str


class _Trace(Exception):
    """Where in a worker an error was raised."""


class _Worker(ForkProcess):
    """A worker that starts with signals blocked: one that came before its first batch would end it."""

    def start(self) -> None:
        """Start with the signals blocked, which a child inherits."""
        with blocked():
            super().start()

    def terminate(self) -> None:
        """End the worker by the one signal that it hears."""
        self.kill()


class _Workers(ForkContext):
    """What starts workers, and remembers them."""

    def __init__(self) -> None:
        self.started: list[_Worker] = []

    def Process(self, **settings: Any) -> _Worker:  # type: ignore[override]  # a class in the stubs
        """A new worker; those that ended well are forgotten."""
        self.started = [one for one in self.started if one.exitcode != 0]
        self.started.append(_Worker(**settings))
        return self.started[-1]


class Batches:
    """A collator for a data loader, with or without workers.

    A batch is a list of pieces of at most `at_once` rows, each with its row numbers. A row whose picture cannot be read
    is in none; its problem stands in the list. Memory that is shared with workers has that limit, and the rows that
    each of them is at work on.
    """

    def __init__(self, collate: Collator, *, workers: int, rows: int, bins: Bins | None = None) -> None:
        self._collate, self._slot, self._bins = collate, rows + 1, bins
        self._workers = _Workers()
        self._most: Any = RawValue("q", rows)
        self._at: Any = RawArray("q", [-1] * workers * self._slot)

    def serve(self, loader: DataLoader[Any]) -> None:
        """Make a data loader's batches, in workers of ours unless the recipe starts them in another way.

        They are forked, whichever way is Python's own: a fresh process would import torch for every epoch.
        """
        loader.collate_fn = self
        if loader.num_workers and loader.multiprocessing_context is None and sys.platform == "linux":
            loader.multiprocessing_context = self._workers

    @property
    def at_once(self) -> int:
        """How many rows a pass through the model takes."""
        return int(self._most.value)

    @at_once.setter
    def at_once(self, rows: int) -> None:
        """Change it, in workers too."""
        self._most.value = rows

    def __call__(self, features: Sequence[Mapping[str, int]]) -> Made | _Failed:
        """The batch; in a worker, an error is a value."""
        numbers, worker = [feature["row"] for feature in features], get_worker_info()
        if worker is None:
            return self.of(numbers)
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
        place = worker.id * self._slot
        self._at[place : place + len(numbers) + 1] = [os.getpid(), *numbers]
        try:
            return self.of(numbers)
        except QlmmError as error:
            return _Failed(error, redact(traceback.format_exc()))
        finally:
            self._at[place : place + self._slot] = [-1] * self._slot

    def of(self, rows: Sequence[int]) -> Made:
        """The batch of some rows."""
        most = self.at_once
        if self._bins is not None:
            parts = self._bins(rows, most)
        else:
            parts = [list(rows[first : first + most]) for first in range(0, len(rows), most)]
        return [one for part in parts for one in self._readable(part)]

    def _readable(self, numbers: Sequence[int]) -> Made:
        """The piece of those rows that can be read, if any, and the problems of the others."""
        problems: Made = []
        while numbers:
            try:
                return [*problems, self._piece(numbers)]
            except Unreadable as bad:
                problems += bad.problems
                numbers = [number for place, number in enumerate(numbers) if place not in bad.rows]
        return problems

    def _piece(self, numbers: Sequence[int]) -> Batch:
        try:
            return {**self._collate([{"row": number} for number in numbers]), ROWS: list(numbers)}
        except QlmmError:
            raise
        except Exception as error:
            why = shortened(f"{type(error).__name__}: {error}".splitlines()[0], LONGEST)
            help = "look at these rows with `qlmm data show`; QLMM_DEBUG=1 shows the trace"
            raise RunError.one("D049", f"no batch can be made of {self._named(numbers)} ({why})", help=help) from error

    def _named(self, numbers: Iterable[int]) -> str:
        return ", ".join(map(str, self._collate.origins(numbers)))

    def lost(self) -> RunError | None:
        """The error about a worker that was killed, with the rows that it had; None where every worker lives."""
        killed = next((one for one in self._workers.started if one.exitcode), None)
        if killed is None:
            return None
        slots = (self._at[place : place + self._slot] for place in range(0, len(self._at), self._slot))
        numbers: list[int] = next((slot[1:] for slot in slots if slot[0] == killed.pid), [])
        named = self._named(number for number in numbers if number >= 0)
        message = f"data worker {killed.pid} ended with exit code {killed.exitcode}"
        help = "did memory run out? Lower training.workers or data.max_pixels. Checkpoints sealed before are intact."
        return RunError.one("D048", f"{message}, at work on {named}" if named else message, help=help)


def received(batch: Made | _Failed) -> Made:
    """A batch as a loader gives it, or the error of its worker."""
    if isinstance(batch, _Failed):
        raise batch.error from _Trace(batch.trace)
    return batch
