"""A new folder appears complete or not at all: checks of its place, a hidden folder to write in, one rename.

Usage: ``check_place(out, sources); check_room(out, size); with staged(out) as stage: …; publish(stage, out)``
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from qlmm.core.errors import QlmmError, UsageError
from qlmm.core.files import follow_umask, free_bytes, fsync_dir, fsync_file, umask
from qlmm.core.units import memory

__all__ = ["check_place", "check_room", "emptied", "only_writer", "publish", "staged"]

# Configuration, processor and card, beside the weights.
BESIDE_BYTES = 64 << 20


def check_place(out: Path, sources: Iterable[Path] = ()) -> None:
    """Refuse (A033) a folder that is taken, a link, inside what is read, or that cannot be made in one rename."""
    help = "name a folder that does not exist yet"
    if out.is_symlink():
        raise UsageError.one("A033", f"{out} is a link", help=help)
    place = out.resolve()
    above = next(parent for parent in place.parents if parent.exists())
    around = next((one for one in sources if one.is_dir() and place.is_relative_to(one.resolve())), None)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        why = "is there already and not empty"
    elif out.exists() and (os.path.ismount(place) or place == Path.cwd()):
        kind = "a mount point" if os.path.ismount(place) else "the current folder"
        why, help = f"is {kind}, which nothing can be renamed to", "name a folder inside it"
    elif around is not None:
        why = f"lies inside {around}, which is read"
    elif not above.is_dir() or not os.access(above, os.W_OK):
        reason = "cannot be written to" if above.is_dir() else "is not a directory"
        why, help = f"cannot be made: {above} {reason}", "name another folder"
    else:
        return
    raise UsageError.one("A033", f"{out} {why}", help=help)


def check_room(out: Path, needed: int, *, help: str = "name a folder on another disk") -> None:
    """Refuse (A034) a folder that would fill the disk: ``needed`` bytes of weights lie on it at once."""
    free, needed = free_bytes(out.absolute().parent), needed + BESIDE_BYTES
    if free < needed:
        room = f"{memory(needed)} needed while it is made, {memory(free)} free"
        raise UsageError.one("A034", f"not enough room for {out}: {room}", help=help)


@contextmanager
def only_writer(lock: Path, refusal: Callable[[], QlmmError]) -> Iterator[None]:
    """Keep a file locked until the block is left; raise ``refusal()`` at once where another process has the lock.

    The operating system releases the lock when its process dies.
    """
    # Other users of a shared folder lock the same file; filelock itself does not ask the umask.
    taken = FileLock(lock, mode=0o666 & ~umask())
    try:
        taken.acquire(timeout=0)
    except Timeout:
        raise refusal() from None
    try:
        yield
    finally:
        taken.release()


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give an empty, hidden folder beside `out` until the block is left; A033 while another process makes it."""
    place = out.absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    stage, lock = (place.with_name(f".{place.name}.{kind}") for kind in ("part", "lock"))
    taken = UsageError.one("A033", f"another process is making {out}", help="wait for it, or name another folder")
    with only_writer(lock, lambda: taken):
        try:
            yield emptied(stage)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
            lock.unlink(missing_ok=True)


def emptied(folder: Path) -> Path:
    """Make a folder new; what lay there is removed, of a link only itself."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def publish(stage: Path, place: Path, *, replace: bool = False) -> Path:
    """Make a staged folder appear as ``place`` in one rename; without ``replace`` only an empty folder gives way.

    Raises:
        OSError: when the disk refuses, or something was put there in the meantime.
    """
    follow_umask(stage)
    for path in stage.rglob("*"):
        (fsync_dir if path.is_dir() else fsync_file)(path)
    fsync_dir(stage)
    if place.is_symlink() and replace:
        place.unlink()
    elif place.exists():
        (shutil.rmtree if replace else Path.rmdir)(place)
    stage.rename(place)
    fsync_dir(place.parent)
    return place
