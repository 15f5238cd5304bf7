"""A folder's seal: written last, it proves that every file of the folder is there and whole.

Trainers write checkpoints in place and trust the newest, so a kill while saving leaves one that cannot be resumed.

Usage: ``seal(folder, {"step": 200}); reasons = verify(folder)``
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from qlmm.core.errors import RunError
from qlmm.core.files import atomic_write, file_sha256, fsync_dir, fsync_file

__all__ = ["SEAL_NAME", "read_facts", "seal", "verify"]

SEAL_NAME = "seal.json"
SEAL_VERSION = 1


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Put every file on the disk, then write the seal with the facts (JSON); the order makes a power cut harmless.

    Raises:
        RunError: S001 when the folder contains a link or something else that is not a plain file.
        OSError: when the disk refuses; the folder then has no valid seal.
    """
    files = {}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise RunError.one("S001", f"cannot seal {folder}: {name} is not a plain file")
        if path.is_dir():
            fsync_dir(path)
        elif name != SEAL_NAME:
            fsync_file(path)
            files[name] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    fsync_dir(folder)
    content = {"version": SEAL_VERSION, "facts": dict(facts), "files": files}
    atomic_write(folder / SEAL_NAME, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def verify(folder: Path) -> list[str]:
    """Why the folder is not what was sealed; empty when it is whole.

    A file that was added is a reason too, since loaders pick files by name.
    """
    try:
        _, listed = _read(folder)
    except (OSError, ValueError) as error:
        return [f"{SEAL_NAME}: {error}"]
    present = {path.relative_to(folder).as_posix() for path in _walk(folder) if path.is_symlink() or not path.is_dir()}
    extra = sorted(present - set(listed) - {SEAL_NAME})
    reasons = [reason for name, entry in sorted(listed.items()) if (reason := _compare(folder, name, entry))]
    return reasons + [f"{name}: not in the seal" for name in extra]


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts stored with the seal, whether or not the files are whole; S002 when there is no readable seal."""
    try:
        return _read(folder)[0]
    except (OSError, ValueError) as error:
        raise RunError.one("S002", f"{folder / SEAL_NAME}: {error}") from error


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, object]]:
    """Facts and files of the seal; the error's text is why it cannot be read."""
    try:
        content = json.loads((folder / SEAL_NAME).read_text("utf-8"))
        if content["version"] == SEAL_VERSION:
            return dict(content["facts"]), dict(content["files"])
        reason = f"version {content['version']} of the seal is not known here"
    except FileNotFoundError:
        reason = "missing"
    except (ValueError, KeyError, TypeError, RecursionError):
        reason = "cut short or not a seal"
    raise ValueError(reason)


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below ``folder`` in a stable order; links are named, never followed."""
    for root, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted([*folders, *files]):
            yield Path(root, name)


def _compare(folder: Path, name: str, entry: object) -> str | None:
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        return f"{name}: not inside the folder"
    if not (isinstance(entry, dict) and isinstance(entry.get("sha256"), str)):
        return f"{name}: its entry in the seal is damaged"
    path = folder / inside
    if path.is_symlink() or not path.is_file():
        return f"{name}: missing"
    size = path.stat().st_size
    if size != entry.get("size"):
        return f"{name}: {size} bytes, sealed with {entry.get('size')}"
    if file_sha256(path) != entry["sha256"]:
        return f"{name}: content differs from what was sealed"
    return None
