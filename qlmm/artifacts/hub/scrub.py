"""Taking out of an adapter's papers what belongs to one machine or one person, before they leave it.

Two things go, from keys and values alike: absolute paths, of which the last part stays, and whatever looks like an
access key.

Usage: ``clean, replaced = scrub(json.loads(manifest), "qlmm.json")``
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from qlmm.core.secrets import find, redact

__all__ = ["Replaced", "last_part", "local_paths", "places_in", "scrub", "secrets_in", "shorten", "whole_paths"]

# A commit has 40 hex digits, as has a key of Weights & Biases; under these names it is a commit.
COMMITS = frozenset({"revision", "_commit_hash"})
_WHOLE = re.compile(r"(?:~[\w.-]*)?/[^\n]+|[A-Za-z]:[\\/][^\n]*|\\\\[^\n]+")
# Inside a sentence a path ends at a blank; an address (https://…) and a fraction (1/2) are none.
_INSIDE = re.compile(
    r"(?:file://|(?<![\w./:<~-])~?)(?:/[\w.@+~-]+){2,}(?<!\.)/?|(?<!\w)[A-Za-z]:\\(?:[\w.@+ ~-]+\\)*[\w.@+~-]+(?<!\.)"
)
# Where systems keep the folders of people; what follows is a name.
_PERSON = re.compile(r"(?<![\w.~])(?:/home/|/Users/|[A-Za-z]:[\\/]+Users[\\/]+)[\w.-]+")
# A path of one part (/data) is too short to be looked for in other texts: it may be a piece of anything.
FEWEST_PARTS = 3


@dataclass(frozen=True, slots=True)
class Replaced:
    """One replacement: the file and key it was made in, what stood there (a key only by its kind), what stands now."""

    where: str
    before: str
    after: str


def last_part(path: str) -> str:
    """The last part of a path of any system; a path that is nothing but a root is called ``path``."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1].strip("~:") or "path"


def shorten(text: str) -> str:
    """A text with every absolute path in it cut to its last part."""
    if _WHOLE.fullmatch(text):
        return last_part(text)
    return _INSIDE.sub(lambda match: last_part(match[0]), text)


def scrub(value: Any, where: str, names: Mapping[str, str] | None = None) -> tuple[Any, list[Replaced]]:
    """A copy of a JSON value without absolute paths and access keys, and what was replaced.

    Args:
        value: what ``json.loads`` gives.
        where: what the value is called in the list of replacements.
        names: texts that become something else than their paths' last parts.
    """
    replaced: list[Replaced] = []
    known = names or {}

    def clean(text: str, place: str, *, commit: bool = False) -> str:
        kept = text if commit else redact(text)
        if kept != text:
            replaced.extend(Replaced(place, secret.kind, "<redacted>") for secret in find(text))
        short = known.get(kept, shorten(kept))
        if short != kept:
            replaced.append(Replaced(place, kept, short))
        return short

    def members(one: dict[str, Any], place: str) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, inner in one.items():
            name = _unlike(clean(key, f"{place}, a key"), made)
            made[name] = walk(inner, f"{place} {name}" if place == where else f"{place}.{name}", name)
        return made

    def walk(one: Any, place: str, key: str = "") -> Any:
        if isinstance(one, dict):
            return members(one, place)
        if isinstance(one, list):
            return [walk(inner, f"{place}.{number}") for number, inner in enumerate(one)]
        return clean(one, place, commit=key in COMMITS) if isinstance(one, str) else one

    return walk(value, where), replaced


def _unlike(key: str, taken: Iterable[str]) -> str:
    """The key, numbered where two paths end alike: nothing may be lost."""
    if key not in taken:
        return key
    return next(name for number in count(2) if (name := f"{key} ({number})") not in taken)


def local_paths(replaced: Iterable[Replaced]) -> dict[str, str]:
    """What to look for in the other files: the paths that were found, and the home folder, longest first."""
    known = {str(place): "~" for place in _home()} | whole_paths(replaced)
    return dict(sorted(known.items(), key=lambda item: -len(item[0])))


def whole_paths(replaced: Iterable[Replaced]) -> dict[str, str]:
    """Those of the replacements whose text was nothing but a path, one that is long enough to be looked for."""
    paths = {one.before: one.after for one in replaced if _WHOLE.fullmatch(one.before)}
    return {path: short for path, short in paths.items() if _parts(path) >= FEWEST_PARTS}


def _home() -> list[Path]:
    """The home folder, where its name says whose it is."""
    home = Path.home()
    return [home] if len(home.parts) >= FEWEST_PARTS else []


def _parts(path: str) -> int:
    return len(re.split(r"[\\/]+", path.rstrip("\\/")))


def secrets_in(text: str, commits: Iterable[str] = ()) -> list[str]:
    """Kinds of everything in a text that looks like an access key; the commits that are known are none."""
    known = set(commits)
    return sorted({secret.kind for secret in find(text) if text[secret.start : secret.end] not in known})


def places_in(text: str) -> list[str]:
    """Folders of people, this one's home among them, that a text names."""
    own = {str(home) for home in _home() if str(home) in text}
    return sorted(own | set(_PERSON.findall(text)))
