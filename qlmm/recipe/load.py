"""A recipe file, with overrides, as a checked ``Recipe`` that remembers where each key came from.

Relative paths in a recipe are relative to the current directory, as on the command line, not to the recipe's folder:
a shipped recipe can be run from anywhere, and ``runs/`` lands where you are.

Usage: ``loaded = load_recipe("recipes/owl_lora.yaml", ["training.steps=20"]); loaded.recipe.training.steps``
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from qlmm.core import secrets
from qlmm.core.errors import Problem, RecipeError, UsageError, Where
from qlmm.recipe.error_messages import explain_errors, where_is
from qlmm.recipe.overrides import OVERRIDES, apply
from qlmm.recipe.schema import Recipe
from qlmm.recipe.schema_keys import as_path, keys, value_at
from qlmm.recipe.yaml_reader import Document, dump, excerpt, parse

__all__ = ["MAX_BYTES", "LoadedRecipe", "as_yaml", "load_recipe", "parse_recipe", "read_text"]

MAX_BYTES = 256 * 1024
LEAK_HELP = "take it out and revoke it; use the HF_TOKEN variable, `hf auth login` or the tracker's own login"


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A checked recipe with overrides applied, the name of its file, and the place of every key in it."""

    recipe: Recipe
    file: str
    overrides: tuple[str, ...]
    _document: Document = field(repr=False, compare=False)

    def where(self, key: str) -> Where:
        """Where the value of a dotted key stands; for one that was not given, where its section does."""
        return where_is(self._document, as_path(key))

    def origin(self, key: str) -> str:
        """Where a dotted key's value comes from: ``file:line``, ``override`` or ``default``."""
        place = self._document.places.get(as_path(key))
        if place is None:
            return "default"
        where = place.key or place.value
        return "override" if where.file == OVERRIDES else f"{where.file}:{where.line}"

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Let a refusal inside the block point at the recipe's line whose key it is about."""
        try:
            yield
        except UsageError as error:
            raise error.with_problems([self._placed(problem) for problem in error.problems]) from error

    def _placed(self, problem: Problem) -> Problem:
        opening = re.match(r"[a-z]+(\.\w+)+", problem.key or "")
        known = opening is not None and re.sub(r"\.\d+", "[]", opening[0]) in {key.name for key in keys()}
        if opening is None or not known or problem.where is not None:
            return problem
        return replace(problem, where=self.where(opening[0]))


def as_yaml(recipe: Recipe) -> str:
    """Every key of a recipe as YAML; reading it again gives the same recipe."""
    return dump(recipe.model_dump(mode="json"))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read and check a recipe file, with overrides ``section.key=value``, the last one winning.

    Raises:
        RecipeError: with every problem of the file and of the overrides, each with its place.
    """
    return parse_recipe(read_text(Path(path)), str(path), overrides)


def parse_recipe(text: str, file: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Check a recipe's text as ``load_recipe`` checks a file; ``file`` is its name in messages."""
    # Access keys come first and alone: the messages of other problems quote lines.
    leaks = list(_leaks(text, file))
    leaks += [leak for number, override in enumerate(overrides, 1) for leak in _leaks(override, OVERRIDES, number)]
    if leaks:
        raise RecipeError(leaks)
    document = parse(text, file)
    apply(document, overrides)
    if leaks := list(_leaks_in_values(document)):
        raise RecipeError(leaks)
    recipe, problems = _check(document)
    problems = sorted([*document.problems, *problems], key=_reading_order)
    if recipe is None or problems:
        raise RecipeError(problems)
    return LoadedRecipe(recipe, file, tuple(overrides), document)


def read_text(path: Path) -> str:
    """The text of a recipe file; R001 when it cannot be read, R002 when it is too large or not UTF-8."""
    try:
        if path.exists() and not path.is_file():
            raise RecipeError.one("R001", f"{path} is not a file")
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or "not a file name"
        help = "`qlmm recipe list` shows the shipped ones"
        raise RecipeError.one("R001", f"cannot read {path}: {why}", help=help) from None
    if len(raw) > MAX_BYTES:
        raise RecipeError.one("R002", f"{path} is larger than {MAX_BYTES // 1024} KB, which no recipe is")
    file = str(path)
    if raw.startswith(b"\xef\xbb\xbf"):
        help = "save the file as UTF-8 without BOM"
        raise RecipeError.one("R002", "the file starts with a byte order mark", where=Where(file, 1, 1), help=help)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8")
        where = replace(excerpt(before, file, len(before)), excerpt=None)
        raise RecipeError.one("R002", f"not UTF-8: byte 0x{raw[error.start]:02x}", where=where) from None


def _check(document: Document) -> tuple[Recipe | None, list[Problem]]:
    """The recipe in a document, or what keeps it from being one."""
    data = {} if document.data is None else document.data
    if not isinstance(data, dict):
        where = document.places[()].value
        return None, [Problem("R013", "a recipe is made of sections: version, base, adapter, data, …", where)]
    # A section all of whose keys are commented out is an empty one.
    filled = {key: {} if value is None and key in Recipe.model_fields else value for key, value in data.items()}
    document.data = filled
    try:
        # JSON rules are the strict ones that fit YAML: lists become tuples, 1 may be 1.0, "1" stays text.
        return Recipe.model_validate_json(json.dumps(filled)), []
    except ValidationError as error:
        return None, explain_errors(error, document)


def _leaks(text: str, file: str, line: int | None = None) -> Iterator[Problem]:
    """Access keys in a text, which is one ``line`` of the command line or the whole file."""
    for secret in secrets.find(text):
        where = excerpt(text, file, secret.start)
        yield _leak(secret, replace(where, line=line or where.line))


def _leaks_in_values(document: Document) -> Iterator[Problem]:
    """Access keys that escapes or folded lines hid from the first look."""
    for path in document.places:
        value = value_at(document.data, path)
        if isinstance(value, str):
            yield from (_leak(secret, where_is(document, path)) for secret in secrets.find(value))


def _leak(secret: secrets.Secret, where: Where) -> Problem:
    return Problem("R020", f"this looks like a {secret.kind}", replace(where, excerpt=None), LEAK_HELP)


def _reading_order(problem: Problem) -> tuple[bool, int, int]:
    """File first, then command line; within each from top to bottom."""
    where = problem.where or Where("")
    return (where.file == OVERRIDES, where.line or 0, where.column or 0)
