"""Folders that are made once and then only read: converted weights, unpacked packages.

A folder with the final name is always whole: it is written aside, sealed, and moved into place in one step.

Usage: ``made_once(home / "smollm2-r1", build=lambda aside: convert(file, aside), facts={"from": "smollm2"})``
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from qlmm.core.files import fsync_dir
from qlmm.core.seal import seal

__all__ = ["made_once"]

LOCK = "prepare.lock"


def made_once(folder: Path, build: Callable[[Path], None], facts: Mapping[str, object]) -> Path:
    """The folder, made now if it is not there; two processes that need it at once make it once.

    Args:
        folder: the final place.
        build: writes everything into the folder it is given; what it raises is passed on, and nothing is left.
        facts: where the content comes from, kept in the seal.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / LOCK):
        if not folder.is_dir():
            with _aside(folder) as aside:
                build(aside)
                _follow_umask(aside)
                seal(aside, facts)
                os.rename(aside, folder)
            fsync_dir(folder.parent)
    return folder


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A folder to write in first; it goes away unless it was renamed, and what a killed process left goes too."""
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _follow_umask(folder: Path) -> None:
    """Give every file the mode of one that was made by the umask: safetensors leaves 0600, which locks others out."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)
