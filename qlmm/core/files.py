"""Writing files so that a reader, or a power cut, never meets half of one.

Usage: ``atomic_write(folder / "run.json", json.dumps(facts))``
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path

__all__ = [
    "atomic_write",
    "file_sha256",
    "follow_umask",
    "free_bytes",
    "fsync_dir",
    "fsync_file",
    "is_lfs_pointer",
    "umask",
]

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def atomic_write(path: Path, content: bytes | str) -> None:
    """Replace ``path`` by ``content`` in one step that survives a crash: write aside, fsync, rename, fsync folder.

    Raises:
        OSError: when the disk refuses; the old file is then untouched and nothing is left beside it.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        # "x" refuses a planted link. ``tempfile`` would leave mode 0600, which locks other users out of artifacts.
        with aside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def fsync_dir(path: Path) -> None:
    """Put a folder's names (created, renamed, removed) on the disk; only POSIX systems need and allow it."""
    if os.name == "posix":
        fsync_file(path)


def fsync_file(path: Path) -> None:
    """Put the bytes of a file that something else wrote on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def umask() -> int:
    """The permissions that new files of this process do not get; reading them sets them."""
    found = os.umask(0)
    os.umask(found)
    return found


def follow_umask(folder: Path) -> None:
    """Give all below a folder the permissions that the umask leaves: safetensors writes files of its owner's alone."""
    hidden = umask()
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~hidden)


def free_bytes(path: Path) -> int:
    """Bytes free to this user on the disk that ``path`` is on, or would be on once created."""
    whole = path.absolute()
    return shutil.disk_usage(next(one for one in (whole, *whole.parents) if one.exists())).free


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is the few lines of text that Git leaves where Git LFS did not fetch the content."""
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER
