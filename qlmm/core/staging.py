"""A new folder appears complete or not at all: checks of its place, a hidden folder to write in, one rename.

Usage: ``check_place(out, sources); check_room(out, size); with staged(out) as stage: …; publish(stage, out)``
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qlmm.core.errors import UsageError
from qlmm.core.files import free_bytes, fsync_dir, fsync_file
from qlmm.core.lock import only_writer
from qlmm.core.units import memory

__all__ = ["check_place", "check_room", "emptied", "publish", "staged"]

# Configuration, processor and card, beside the weights.
BESIDE_BYTES = 64 << 20


def check_place(out: Path, sources: Iterable[Path] = ()) -> None:
    """Refuse a folder that is taken, a link, inside what is read, or that cannot be made in one rename.

    Raises:
        UsageError: A033.
    """
    help = "name a folder that does not exist yet"
    if out.is_symlink():
        raise UsageError.one("A033", f"{out} is a link", help=help)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError.one("A033", f"{out} is there already and not empty", help=help)
    place = out.resolve()
    if out.exists() and (os.path.ismount(place) or place == Path.cwd()):
        why = "is a mount point" if os.path.ismount(place) else "is the current folder"
        raise UsageError.one("A033", f"{out} {why}, which nothing can be renamed to", help="name a folder inside it")
    for source in sources:
        if source.is_dir() and place.is_relative_to(source.resolve()):
            raise UsageError.one("A033", f"{out} lies inside {source}, which is read", help=help)
    above = next(parent for parent in place.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        why = "cannot be written to" if above.is_dir() else "is not a directory"
        raise UsageError.one("A033", f"{out} cannot be made: {above} {why}", help="name another folder")


def check_room(out: Path, needed: int, *, help: str = "name a folder on another disk") -> None:
    """Refuse what would fill the disk.

    Args:
        out: the folder to make.
        needed: bytes of weights that lie on the disk at once while it is made.
        help: what to do about it.

    Raises:
        UsageError: A034 with the space needed and the space there is.
    """
    free, needed = free_bytes(out.absolute().parent), needed + BESIDE_BYTES
    if free < needed:
        raise UsageError.one(
            "A034",
            f"not enough room for {out}: {memory(needed)} needed while it is made, {memory(free)} free",
            help=help,
        )


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give an empty, hidden folder beside `out`; remove it afterwards, and what a killed process left of it before.

    Raises:
        UsageError: A033 while another process makes the same folder.
    """
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
    """Make a folder new, whatever lay there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def publish(stage: Path, place: Path, *, replace: bool = False) -> Path:
    """Make a staged folder appear under its name in one rename, readable as the umask says.

    Weights are written with mode 0600 by safetensors; other users' servers would then find no adapter.

    Args:
        stage: the folder, with everything in it.
        place: its name; nothing, or an empty folder.
        replace: whether what is there is our own and gives way.

    Raises:
        OSError: when the disk refuses, or something was put there in the meantime.
    """
    # The umask can only be read by setting it.
    umask = os.umask(0)
    os.umask(umask)
    for path in stage.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        (fsync_dir if path.is_dir() else fsync_file)(path)
    fsync_dir(stage)
    if place.exists():
        (shutil.rmtree if replace else Path.rmdir)(place)
    stage.rename(place)
    fsync_dir(place.parent)
    return place
