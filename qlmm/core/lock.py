"""One writer at a time: a lock on a file, which the operating system releases when its process dies.

Usage: ``with only_writer(folder / "run.lock", refusal): …``
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from qlmm.core.errors import QlmmError

__all__ = ["only_writer"]


@contextmanager
def only_writer(lock: Path, refusal: Callable[[], QlmmError]) -> Iterator[None]:
    """Hold a lock until the block is left; never wait for another process.

    Args:
        lock: the file to lock; it is made where there is none.
        refusal: gives the error to raise while another process holds the lock.
    """
    # Other users of a shared folder lock the same file.
    held = FileLock(lock, mode=0o666)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise refusal() from None
    try:
        yield
    finally:
        held.release()
