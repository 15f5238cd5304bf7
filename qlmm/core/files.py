"""Writing files so that a reader, or a power cut, never meets half of one.

Usage: ``atomic_write(folder / "run.json", json.dumps(facts))``
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path

__all__ = ["atomic_write", "file_sha256", "free_bytes", "fsync_dir", "fsync_file"]

BLOCK_BYTES = 1 << 20


def atomic_write(path: Path, content: bytes | str) -> None:
    """Replace ``path`` by ``content`` in one step that survives a crash: write aside, fsync, rename, fsync folder.

    The file's mode follows the umask. ``tempfile`` would leave 0600, which locks other users out of artifacts.

    Raises:
        OSError: when the disk refuses; the old file is then untouched and nothing is left beside it.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        _write_new(aside, data)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def _write_new(path: Path, data: bytes) -> None:
    """Create ``path``, which must not exist (a planted link is refused), with its bytes on the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def fsync_file(path: Path) -> None:
    """Have the bytes of a file that something else wrote put on the disk."""
    _fsync(path)


def fsync_dir(path: Path) -> None:
    """Have a folder's names (created, renamed, removed) put on the disk; only POSIX systems need and allow it."""
    if os.name == "posix":
        _fsync(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def free_bytes(path: Path) -> int:
    """Bytes free to this user on the disk that holds ``path``, or would hold it once created."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks so that size does not matter."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
