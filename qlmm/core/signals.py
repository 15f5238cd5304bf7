"""An orderly end on SIGTERM and Ctrl-C: the first asks for it, the second ends the process at once. SIGUSR1: a save.

Usage: ``with stop_signals() as stop: while not stop.by: step()``
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

__all__ = ["ASKING", "Stop", "blocked", "handled", "stop_signals"]

# All that ask something of a run; schedulers send them to every process of a job.
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stop:
    """Whether somebody asked for an end: ``by`` is the signal that came, or None; ``save``: for a save only."""

    def __init__(self) -> None:
        self.by: int | None = None
        self.save = False

    def take(self, which: int, _: FrameType | None) -> None:
        """Handle a signal; the second one that asks for an end interrupts."""
        if which == signal.SIGUSR1:
            self.save = True
            return
        if self.by is not None:
            raise KeyboardInterrupt
        self.by = which


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Watch for signals until the block is left."""
    stop = Stop()
    with handled(dict.fromkeys(ASKING, stop.take)):
        yield stop


@contextmanager
def handled(
    handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], object] | signal.Handlers],
) -> Iterator[None]:
    """Handle signals until the block is left, then restore the handlers that were there.

    Only the main thread can: elsewhere, signals stay with the program that runs qlmm.
    """
    mine = handlers if threading.current_thread() is threading.main_thread() else {}
    before = {which: signal.signal(which, handler) for which, handler in mine.items()}
    try:
        yield
    finally:
        for which, handler in before.items():
            # None: it was not set from Python.
            signal.signal(which, signal.SIG_DFL if handler is None else handler)


@contextmanager
def blocked() -> Iterator[None]:
    """Hold the signals back until the block is left; a process that is started within never gets them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
