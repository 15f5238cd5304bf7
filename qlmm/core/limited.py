"""Limits of time and memory around what somebody else wrote and this process has to run.

Usage: ``with limited(seconds=10, size=1 << 30): text = template.render(...)``
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["TooMuch", "limited"]


class TooMuch(Exception):
    """It took longer, or more memory, than it may."""


class _Late(BaseException):
    """Time is over; no ``except Exception`` inside the block stops it."""


def _late(*_: object) -> None:
    raise _Late


@contextmanager
def limited(*, seconds: float, size: int) -> Iterator[None]:
    """Stop what the block does after so many seconds, or once the process has grown by ``size`` bytes.

    Alarms reach the main thread only, and Windows has none; memory is limited on Linux only. Elsewhere the block runs
    without that limit.

    Raises:
        TooMuch: what the block took too much of.
    """
    try:
        with _timed(seconds), _sized(size):
            yield
    except _Late:
        raise TooMuch(f"it takes more than {seconds:g} seconds") from None
    except MemoryError:
        raise TooMuch(f"it takes more than {size >> 20:,} MB of memory") from None


@contextmanager
def _timed(seconds: float) -> Iterator[None]:
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler, timer = signal.signal(signal.SIGALRM, _late), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


@contextmanager
def _sized(size: int) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + size
    allowed = [one for one in (soft, hard, most) if one != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(allowed), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
