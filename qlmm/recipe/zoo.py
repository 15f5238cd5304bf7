"""Where the adapters of the zoo are, by name: ``zoo:owl_kinds`` in a recipe or on a command line is one of them.

Usage: ``folder = entry_folder("owl_kinds")``
"""

from __future__ import annotations

import re
from pathlib import Path

from qlmm.core.errors import UsageError
from qlmm.core.filenames import ADAPTER, RUN_RECORD
from qlmm.core.naming import NAME_RULE, close

__all__ = ["ENTRY", "PREFIX", "entry_folder", "folder", "packaged", "shipped", "start_folder"]

PREFIX = "zoo:"
ENTRY = "entry.json"


def packaged(name: str) -> Path:
    """A folder of data that ships with qlmm: inside an installed package, or at the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / name if (package / name).is_dir() else package.parent / name


def folder() -> Path:
    """Where the entries are."""
    return packaged("adapters_zoo")


def shipped() -> dict[str, Path]:
    """Every entry's folder by name, in the order of names."""
    found = (path.parent for path in sorted(folder().glob(f"*/{ENTRY}")))
    return {path.name: path for path in found if re.fullmatch(NAME_RULE, path.name)}


def entry_folder(name: str) -> Path:
    """The folder of an entry, with or without ``zoo:`` before its name; Z001, with the nearest, when there is none."""
    known = shipped()
    bare = name.removeprefix(PREFIX)
    if bare not in known:
        raise UsageError.one("Z001", f"the zoo has no adapter `{bare}`", help=close(bare, known))
    return known[bare]


def start_folder(named: Path) -> Path:
    """The folder that ``adapter.start_from`` means: that of an entry, that of a run's adapter, or the one it names."""
    if str(named).startswith(PREFIX):
        return entry_folder(str(named))
    return named / ADAPTER if (named / RUN_RECORD).is_file() else named
