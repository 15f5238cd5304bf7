"""Folders that are made once and then only read: converted weights, unpacked packages.

Usage: ``made_once(home / "smollm2-r1", build=lambda stage: convert(file, stage), facts={"from": "smollm2"})``
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

from qlmm.core.seal import seal
from qlmm.core.staging import emptied, publish

__all__ = ["made_once"]

LOCK = "prepare.lock"


def made_once(folder: Path, build: Callable[[Path], None], facts: Mapping[str, object]) -> Path:
    """The folder; ``build`` fills it if it is not there, whole or not at all. Of two processes one waits for the other.

    The seal keeps the ``facts``: where the content comes from.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / LOCK):
        if not folder.is_dir():
            # Removes what a killed process left.
            stage = emptied(folder.with_name(f".{folder.name}.tmp"))
            try:
                build(stage)
                seal(stage, facts)
                publish(stage, folder)
            finally:
                shutil.rmtree(stage, ignore_errors=True)
    return folder
