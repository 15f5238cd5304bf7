"""The files that an adapter may have: a list of those that are shared, and the rule for pickles.

A pickle runs code where it is loaded, so no file of an adapter may be one, by its name or by its content.

Usage: ``names = [name for name in names if allowed(name, manifest)]; check_no_pickle(folder)``
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.core.errors import ModelError, Problem
from qlmm.core.filenames import ADAPTER_WEIGHTS, CARD, LOCAL_RECIPE, MANIFEST

__all__ = [
    "HUB_PATTERNS",
    "allowed",
    "check_contents",
    "check_no_pickle",
    "files_below",
    "has_pickle_name",
    "is_picture",
    "refuse_files",
]

# Files of PEFT, a processor, tokenizers or chat templates.
_SUFFIXES = ("json", "jinja", "txt", "model", "tiktoken", "spm")
# A second tokenizer has a folder of its own.
_TEXT = re.compile(rf"(?:[\w-][\w.-]*/)?[\w-][\w.-]*\.(?:{'|'.join(_SUFFIXES)})")
_PICTURE = re.compile(r"held-out/[\w-][\w.-]*\.png")
# The same list as patterns of the Hub, for an adapter whose manifest is not here yet.
HUB_PATTERNS = (*(f"*.{suffix}" for suffix in _SUFFIXES), "*.md", ADAPTER_WEIGHTS, "held-out/*.png")
_PICKLE = re.compile(r".*\.(?:pkl|pickle|pt|pth|bin|ckpt|joblib|npy|npz)", re.IGNORECASE)
# Protocols 2 to 5 begin with their number; older ones have no mark, and no loader takes them without their suffix.
_PICKLE_MARKS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_PNG = b"\x89PNG\r\n\x1a\n"


def allowed(name: str, manifest: Manifest) -> bool:
    """Whether a file may be sent or fetched: the manifest names it, and it is of a kind that adapters have."""
    known = name == ADAPTER_WEIGHTS or is_picture(name) or bool(_TEXT.fullmatch(name))
    return name in (MANIFEST, CARD) or (name in manifest.files and known and name != LOCAL_RECIPE)


def is_picture(name: str) -> bool:
    """Whether a file of this name is a held-out picture."""
    return bool(_PICTURE.fullmatch(name))


def files_below(folder: Path) -> list[str]:
    """The names of every file and link below the folder."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    )


def check_no_pickle(folder: Path) -> str:
    """Refuse a folder with a file that runs code when it is loaded.

    Raises:
        ModelError: A014 with its name.
    """
    names = files_below(folder)
    found = [name for name in names if has_pickle_name(name) or _has_pickle_content(folder / name)]
    if found:
        message = f"{folder} has pickles, which run code when they are loaded: {', '.join(found)}"
        raise ModelError.one("A014", message, help="delete it; qlmm itself writes safetensors only")
    return f"none in {len(names)} files"


def has_pickle_name(name: str) -> bool:
    """Whether a loader would take a file of this name for a pickle."""
    return bool(_PICKLE.fullmatch(name))


def _has_pickle_content(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begin = file.read(10)
    # A safetensors file begins with the length of its header, whose bytes may be anything.
    length_fits = int.from_bytes(begin[:8], "little") < path.stat().st_size
    if path.suffix == ".safetensors" and begin[8:] == b'{"' and length_fits:
        return False
    if begin.startswith(b"PK") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(has_pickle_name(name) for name in archive.namelist())
    return begin.startswith(_PICKLE_MARKS)


def check_contents(folder: Path, names: Iterable[str]) -> None:
    """Raise H011 about files that are not of the kind that their names promise."""
    refuse_files(folder, [f"{name} {why}" for name in names if (why := _wrong_content(folder / name, name))])


def refuse_files(folder: Path, wrong: Iterable[str]) -> None:
    """Raise H011 about all files that must not be sent, if there are any."""
    help = f"nothing was sent; move it out of {folder} and run the same command again"
    if problems := [Problem("H011", message, help=help) for message in wrong]:
        raise ModelError(problems)


def _wrong_content(path: Path, name: str) -> str | None:
    if name == ADAPTER_WEIGHTS:
        try:
            with safe_open(str(path), framework="pt"):
                return None
        except SafetensorError:
            return "is not a safetensors file"
    if _has_pickle_content(path):
        return "is a pickle by its content"
    with path.open("rb") as file:
        return "is not a PNG picture" if is_picture(name) and file.read(len(_PNG)) != _PNG else None
