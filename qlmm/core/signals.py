"""An orderly end on SIGTERM and Ctrl-C: the first asks for it, the second ends the process at once.

Usage: ``with stop_signals() as stop: while not stop.by: step()``
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Stop", "stop_signals"]


class Stop:
    """Whether somebody asked for an end: ``by`` is the signal that came, or None."""

    def __init__(self) -> None:
        self.by: int | None = None

    def take(self, which: int, _: FrameType | None) -> None:
        """Handle a signal; the second one interrupts."""
        if self.by is not None:
            raise KeyboardInterrupt
        self.by = which


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Watch for SIGTERM and SIGINT until the block is left, then restore the handlers that were there."""
    stop = Stop()
    before = {which: signal.signal(which, stop.take) for which in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
