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
    key, equals, value = override.text.partition("=")
    if not equals or not _KEY.fullmatch(key) or len(override.text.splitlines()) > 1:
        raise override.error("an override is `section.key=value`, on one line", 0, len(key))
    try:
        # The key's letters become blanks, so that every column of the value stays what it is in the override.
        found = parse(" " * (len(key) + 1) + value, OVERRIDES, code="R030")
    except RecipeError as error:
        raise error.with_problems(_moved(error.problems, override)) from None
    document.data = {} if document.data is None else document.data
    section, path = _section(document, key, override)
    # What stood below a replaced value has no place, and no fault, any more.
    for known in [known for known in document.places if known[: len(path)] == path and known != path]:
        del document.places[known]
    document.broken = {known for known in document.broken if known[: len(path)] != path}
    section[path[-1]] = found.data
    own = document.places[path].key
    for inner, place in found.places.items():
        document.places[path + inner] = Place(override.at(place.key) if place.key else None, override.at(place.value))
    document.places[path] = Place(own, document.places[path].value)
    document.broken |= {path + inner for inner in found.broken}
    document.problems += _moved(found.problems, override)


def _moved(problems: Sequence[Problem], override: Override) -> list[Problem]:
    return [replace(problem, where=override.at(problem.where)) for problem in problems if problem.where]


def _section(document: Document, key: str, override: Override) -> tuple[Any, KeyPath]:
    """The section or list that has the key, made where the file has none, and the key's path."""
    section: Any = document.data
    path: KeyPath = ()
    matches = list(re.finditer(r"[^.]+", key))
    for part, match in zip(as_path(key), matches, strict=True):
        step = _step(section, part, override, match)
        path = (*path, step)
        place = override.place(match.start(), match.end())
        if match is matches[-1]:
            document.places[path] = Place(place, place)
            break
        if isinstance(section, dict) and section.get(step) is None:
            section[step] = {}
            document.places[path] = Place(place, place)
        section = section[step]
    return section, path


def _step(section: Any, part: str | int, override: Override, match: re.Match[str]) -> str | int:
    """One part of a dotted key as the key or index it is in ``section``."""
    if isinstance(section, dict):
        return str(part)
    if not isinstance(section, list):
        raise override.error(f"what stands above `{match[0]}` has no keys", match.start(), match.end())
    if not isinstance(part, int) or part >= len(section):
        message = f"the list has {len(section)} entries, numbered from 0"
        raise override.error(message, match.start(), match.end())
    return part
