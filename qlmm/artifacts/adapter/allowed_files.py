"""What an adapter folder may consist of: a list of files that are shared, and the rule for pickles.

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

# The same list as patterns of the Hub, for an adapter whose manifest is not here yet.
HUB_PATTERNS = (
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "*.spm",
    "*.md",
    ADAPTER_WEIGHTS,
    "held-out/*.png",
)
_PICTURE = re.compile(r"held-out/[\w-][\w.-]*\.png")
# Files of PEFT, a processor, tokenizers or chat templates; a second tokenizer has a folder of its own.
_TEXT = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*\.(?:json|jinja|txt|model|tiktoken|spm)")
_PICKLE = re.compile(r".*\.(?:pkl|pickle|pt|pth|bin|ckpt|joblib|npy|npz)", re.IGNORECASE)
# Protocols 2 to 5 begin with their number; older ones have no mark, and no loader takes them without their suffix.
_PICKLE_MARKS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_PNG = b"\x89PNG\r\n\x1a\n"


def allowed(name: str, manifest: Manifest) -> bool:
    """Whether a file of this name may be sent or fetched: one that the manifest names, of a kind that adapters have."""
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
    """Refuse a folder that holds a file which runs code when it is loaded.

    Raises:
        ModelError: A014 with its name.
    """
    names = files_below(folder)
    found = [name for name in names if has_pickle_name(name) or _has_pickle_content(folder / name)]
    if found:
        raise ModelError.one(
            "A014",
            f"{folder} holds pickle, which runs code when it is loaded: {', '.join(found)}",
            help="delete it; qlmm itself writes safetensors only",
        )
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
    """Refuse files that are not what their names say.

    Raises:
        ModelError: H011 naming them.
    """
    refuse_files(folder, [f"{name} {why}" for name in names if (why := _wrong_content(folder / name, name))])


def refuse_files(folder: Path, wrong: Iterable[str]) -> None:
    """Raise one error about all files that must not be sent, if there are any.

    Raises:
        ModelError: H011.
    """
    help = f"nothing was sent; move it out of {folder} and run the same command again"
    problems = [Problem("H011", message, help=help) for message in wrong]
    if problems:
        raise ModelError(problems)


def _wrong_content(path: Path, name: str) -> str | None:
    if name == ADAPTER_WEIGHTS:
        return None if _is_safetensors(path) else "is not a safetensors file"
    if _has_pickle_content(path):
        return "is a pickle by its content"
    with path.open("rb") as file:
        return "is not a PNG picture" if is_picture(name) and file.read(len(_PNG)) != _PNG else None


def _is_safetensors(path: Path) -> bool:
    """Whether the header can be read and fits the file."""
    try:
        with safe_open(str(path), framework="pt"):
            return True
    except SafetensorError:
        return False
