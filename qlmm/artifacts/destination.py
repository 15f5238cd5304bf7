"""Where something new is put: a folder that nothing else needs, on a disk that can hold it.

Usage: ``check_place(out, sources_of(folder, manifest)); check_room(out, size); with staged(out) as stage: …``
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.core.errors import UsageError
from qlmm.core.files import free_bytes
from qlmm.core.units import memory
from qlmm.model.loading.hub import locate

__all__ = ["check_place", "check_room", "sources_of", "staged"]

# Configuration, processor and card, beside the weights.
BESIDE_BYTES = 64 << 20


def sources_of(folder: Path, manifest: Manifest) -> list[Path]:
    """The folders that are read when something is made of an adapter: its own, and those of its base."""
    base = manifest.recipe.base
    return [folder, *(Path(locate(name).path) for name in (base.model, base.vision, base.language) if name)]


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
    """An empty, hidden folder beside `out` to make it in; gone afterwards, and what a killed process left with it.

    Raises:
        UsageError: A033 while another process makes the same folder.
    """
    place = out.absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    stage, lock = (place.with_name(f".{place.name}.{kind}") for kind in ("part", "lock"))
    try:
        with FileLock(lock, timeout=0, mode=0o666):
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir()
            try:
                yield stage
            finally:
                shutil.rmtree(stage, ignore_errors=True)
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise UsageError.one(
            "A033", f"another process is making {out}", help="wait for it, or name another folder"
        ) from error
