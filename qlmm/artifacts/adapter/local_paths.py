"""Folders of a machine and access keys, which are kept out of files that are shared.

An absolute path becomes its last part. A relative one names nobody and stays.

Usage: ``shared = without_places(json.loads(manifest))``
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

from pydantic import JsonValue

from qlmm.core.secrets import STYLE, find, redact
from qlmm.data.reading.readers import BUILTIN, HUB_ID, SUFFIXES

__all__ = ["is_data_set", "name_of", "places_in", "secrets_in", "without_places"]

# Where systems keep the folders of people; what follows is a name.
_PERSON = re.compile(r"(?<![\w.~])(?:/home/|/Users/|[A-Za-z]:[\\/]+Users[\\/]+)[\w.-]+")
# `/` alone may be a token, and `/data` a piece of anything.
FEWEST_PARTS = 3
_ESCAPED, _MARKED = re.compile(r"\\(?=[^A-Za-z0-9\s])"), re.compile(r"\\(?=[^A-Za-z0-9\s])|[*`]|<[^<>]{0,80}>")
_LETTER = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2}))")


def name_of(path: str) -> str:
    """A path's last part where the path is absolute, else the text as it stands."""
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(path).is_absolute() or (kind is PurePosixPath and path.startswith("~")):
            return kind(path).name or "folder"
    return path


def without_places(value: JsonValue, key: str = "") -> JsonValue:
    """A copy of a JSON value without absolute paths and access keys.

    The value under the key ``revision`` is a commit, which reads like an access key.
    """
    if isinstance(value, dict):
        return {name: without_places(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [without_places(one, key) for one in value]
    if not isinstance(value, str) or key == "revision":
        return value
    name = name_of(redact(value))
    if key == "path" and is_data_set(name) and (name != value or os.path.exists(name)):
        # Rows in a folder of this machine must not pass for a data set of the Hub.
        return f"./{name}"
    return name


def is_data_set(path: str) -> bool:
    """Whether a source of rows reads as the id of a data set of the Hub."""
    return bool(HUB_ID.fullmatch(path)) and not path.startswith(BUILTIN) and not path.endswith(SUFFIXES)


def secrets_in(text: str, commits: Iterable[str] = ()) -> list[str]:
    """The kinds of access keys that a text seems to contain; known commits do not count."""
    known = set(commits)
    # As a reader of Markdown, HTML or JSON gets it, too.
    plain = _LETTER.sub(lambda match: chr(int(match[1] or match[2], 16)), html.unescape(text))
    plain = STYLE.sub(" ", plain)
    forms = (text, _ESCAPED.sub("", plain), _MARKED.sub("", plain))
    found = [(secret.kind, one[secret.start : secret.end]) for one in forms for secret in find(one)]
    return sorted({kind for kind, key in found if key not in known})


def places_in(name: str, text: str) -> list[str]:
    """Folders of people that a file names, and, where the file is JSON, values that are absolute paths."""
    home = str(Path.home())
    own = {home} if len(Path(home).parts) >= FEWEST_PARTS and home in text else set()
    try:
        value = json.loads(text) if name.endswith(".json") else None
    except (ValueError, RecursionError):
        value = None
    whole = {one for one in _texts(value) if PurePath(one).is_absolute() and len(PurePath(one).parts) >= FEWEST_PARTS}
    return sorted(own | whole | set(_PERSON.findall(text)))


def _texts(value: JsonValue) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)
