"""``section.key=value`` on the command line, read by the rules of the recipe itself.

Usage: ``apply(document, ["training.steps=20", "adapter.targets=[q_proj, v_proj]"])``
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from qlmm.core.errors import Problem, RecipeError, Where
from qlmm.recipe.schema_keys import as_path
from qlmm.recipe.yaml_reader import MAX_DEPTH, Document, KeyPath, Place, excerpt, parse

__all__ = ["OVERRIDES", "Override", "apply"]

OVERRIDES = "command line"
EXAMPLE = "overrides look like `training.steps=20` or `adapter.targets=[q_proj, v_proj]`"
_KEY = re.compile(rf"[^.=\s]+(\.[^.=\s]+){{0,{MAX_DEPTH - 2}}}")


@dataclass(frozen=True, slots=True)
class Override:
    """One override as it was typed, and its number on the command line, from 1."""

    text: str
    number: int

    @property
    def key(self) -> str:
        """What stands before the equals sign."""
        return self.text.partition("=")[0]

    def place(self, start: int, end: int) -> Where:
        """A stretch of the override as a place in a message."""
        return replace(excerpt(self.text, OVERRIDES, start, end=end), line=self.number)

    def at(self, where: Where) -> Where:
        """A place that was found in the override's value, which was read as a file of one line."""
        column = min((where.column or 1) - 1, len(self.text))
        return self.place(column, column + where.width)

    def error(self, message: str, start: int, end: int) -> RecipeError:
        """The refusal of the override for something wrong in a stretch of it."""
        return RecipeError([Problem("R030", message, self.place(start, end), EXAMPLE)])


def apply(document: Document, overrides: Sequence[str]) -> None:
    """Write every override into ``document``, the last one winning; problems are added to the document's."""
    for number, text in enumerate(overrides, start=1):
        try:
            _apply_one(document, Override(text, number))
        except RecipeError as error:
            document.problems += error.problems


def _apply_one(document: Document, override: Override) -> None:
    found = _read(override)
    document.data = {} if document.data is None else document.data
    holder, path = _holder(document, override)
    last = path[-1]
    if not isinstance(holder, dict | list):
        return  # the document is not a recipe at all, which is reported elsewhere
    _forget_below(document, path)
    holder[last] = found.data  # type: ignore[index]  # _step made it an int for a list, a str for a dict
    _take_over(document, path, found, override)


def _read(override: Override) -> Document:
    """The override's value as a document of its own, with places that count columns in the whole override."""
    key, equals, value = override.text.partition("=")
    if not equals or not _KEY.fullmatch(key) or len(override.text.splitlines()) > 1:
        raise override.error("an override is `section.key=value`, on one line", 0, len(key))
    try:
        # The key's letters become blanks, so that every column of the value stays what it is in the override.
        return parse(" " * (len(key) + 1) + value, OVERRIDES, code="R030")
    except RecipeError as error:
        moved = [replace(problem, where=override.at(problem.where)) for problem in error.problems if problem.where]
        raise RecipeError(moved) from None


def _holder(document: Document, override: Override) -> tuple[Any, KeyPath]:
    """What holds the key an override names, making the sections above it where the file has none, and its path."""
    holder: Any = document.data
    path: KeyPath = ()
    parts = as_path(override.key)
    for depth, match in enumerate(re.finditer(r"[^.]+", override.key)):
        part = _step(holder, parts[depth], override, match)
        path = (*path, part)
        place = override.place(match.start(), match.end())
        if depth == len(parts) - 1:
            document.places.setdefault(path, Place(place, place))
            document.places[path] = Place(place, place)
            break
        if isinstance(holder, dict) and holder.get(str(part)) is None:
            holder[part] = {}
            document.places[path] = Place(place, place)
        holder = holder[part]
    return holder, path


def _step(holder: Any, part: str | int, override: Override, match: re.Match[str]) -> str | int:
    """One part of a dotted key as the key or index it is in ``holder``."""
    if isinstance(holder, dict):
        return str(part)
    if not isinstance(holder, list):
        raise override.error(f"what stands above `{match[0]}` has no keys", match.start(), match.end())
    if not isinstance(part, int) or part >= len(holder):
        message = f"the list has {len(holder)} entries, numbered from 0"
        raise override.error(message, match.start(), match.end())
    return part


def _forget_below(document: Document, path: KeyPath) -> None:
    """What stood below a replaced value has no place, and no fault, any more."""
    below = [known for known in document.places if known[: len(path)] == path and known != path]
    for known in below:
        del document.places[known]
    document.broken = {known for known in document.broken if known[: len(path)] != path}


def _take_over(document: Document, path: KeyPath, found: Document, override: Override) -> None:
    """Move the places and problems of an override's value into the document."""
    key = document.places[path].key
    for inner, place in found.places.items():
        moved = Place(override.at(place.key) if place.key else None, override.at(place.value))
        document.places[path + inner] = moved
    document.places[path] = Place(key, document.places[path].value)
    document.broken |= {path + inner for inner in found.broken}
    document.problems += [replace(one, where=override.at(one.where)) for one in found.problems if one.where]
