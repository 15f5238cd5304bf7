"""Wheels and tarballs as registries send them, made in memory.

Usage: ``(folder / "a.tgz").write_bytes(tarball_bytes({"package/a.txt": b"hello"}))``
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping

__all__ = ["tarball_bytes", "wheel_bytes"]


def wheel_bytes(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarball_bytes(members: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()
