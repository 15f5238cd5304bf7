"""The keys of a recipe, explained: the reference page, and where each value of one recipe comes from.

Usage: ``print(explain(load_recipe("recipes/owl_lora.yaml")))``; ``reference()`` is docs/recipe.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qlmm.core.errors import RecipeError
from qlmm.core.naming import close
from qlmm.recipe.load import LoadedRecipe
from qlmm.recipe.resume_rules import CLASSES
from qlmm.recipe.schema import ConnectorSection
from qlmm.recipe.schema_keys import Key, keys, section_at

__all__ = ["Explained", "describe", "explain", "explained", "reference"]

_INTRODUCTION = """\
# Recipe keys

A recipe is one YAML file of seven sections: `base` (with `connector` inside), `adapter`, `data`, `training`, `output`,
`evaluation`, and `version: 1`. Every key can be overridden on the command line as `section.key=value`, lists by number:
`data.sources.0.path=rows.jsonl`. Relative paths are relative to the current directory.

Values are YAML 1.2: `1e-4` is a number, `no` and `12:30` are text, `true` and `false` are the only truth values.
Unknown keys, duplicate keys, aliases, anchors, tags and access keys are errors.

*On resume* says what a change of the key means for a run that is not finished: `free` may change,
`fork` needs a run directory of its own, `never` makes the weights saved so far useless.

This page is made from the schema by `qlmm recipe explain --markdown`.
"""
_CONNECTOR_NOTE = """\
Further keys of `base.connector` are the settings of its kind, documented in `qlmm/model/connectors/<kind>.py`.

Every kind has the key `base.connector.weights`: the Hub id (`id@commit` pins it) or folder of a published checkpoint
whose connector this one starts from. That is a released mPLUG-Owl for `abstractor`, a LLaVA or its `mm_projector.bin`
for `mlp` and `linear`. Settings that the weights were made with need not be repeated.
See [owl.md](owl.md).
"""


@dataclass(frozen=True, slots=True)
class Explained:
    """One key of one recipe: its documentation, its value there and where that comes from."""

    name: str
    key: Key
    value: Any
    origin: str


def explained(loaded: LoadedRecipe) -> list[Explained]:
    """Every key with its value and origin (``file:line``, ``override``, ``default``), in the order of the schema."""
    return list(_explained(loaded))


def _explained(loaded: LoadedRecipe) -> Iterator[Explained]:
    data = loaded.recipe.model_dump(mode="json")
    for key in keys():
        for name in _instances(key.name, data):
            yield Explained(name, key, _value_at(data, name), loaded.origin(name))
        if key.name == "base.connector.kind" and loaded.recipe.base.connector is not None:
            yield from _settings(loaded, loaded.recipe.base.connector)


def _settings(loaded: LoadedRecipe, connector: ConnectorSection) -> Iterator[Explained]:
    """The connector's own settings, as far as the recipe gives them: the schema does not know them."""
    for setting, value in (connector.model_extra or {}).items():
        name = f"base.connector.{setting}"
        doc = f"Setting of the connector: see qlmm/model/connectors/{connector.kind}.py."
        yield Explained(name, Key(name, doc, "", False), value, loaded.origin(name))


def _instances(name: str, data: Any) -> list[str]:
    """A key's name once for each entry of the list it stands in."""
    listed, many, rest = name.partition("[]")
    if not many:
        return [name]
    return [f"{listed}.{index}{rest}" for index in range(len(_value_at(data, listed)))]


def _value_at(data: Any, name: str) -> Any:
    for part in name.split("."):
        if data is None:
            return None
        data = data[int(part)] if isinstance(data, list) else data[part]
    return data


def explain(loaded: LoadedRecipe) -> str:
    """The whole recipe as text: each key with value, origin, documentation, type and default."""
    return "\n".join(_entry(item) for item in explained(loaded))


def _entry(item: Explained) -> str:
    key = item.key
    head = f"{item.name} = {_shown(item.value)}"
    lines = [f"{head:<52} # {item.origin}", f"    {key.doc}"]
    return "\n".join([*lines, *([f"    {key.type}; {_default(key)}"] if key.type else []), ""])


def _default(key: Key) -> str:
    return key.default_text if key.required else f"default {key.default_text}"


def describe(name: str) -> str:
    """One key, or all keys of a section, as text.

    Raises:
        RecipeError: R012 when there is no such key.
    """
    found = [key for key in keys() if key.name == name or key.name.startswith((f"{name}.", f"{name}[]"))]
    if not found:
        known = [key.name for key in keys()]
        raise RecipeError.one("R012", f"no key is called `{name}`", help=close(name, known).partition("  known")[0])
    return "\n".join(
        f"{key.name}\n    {key.doc}\n    {key.type}; {_default(key)}; on resume: {CLASSES[key.name]}\n" for key in found
    )


def reference() -> str:
    """The reference page of all keys, in Markdown."""
    sections = dict.fromkeys(key.section for key in keys())
    return "\n".join([_INTRODUCTION, *(_section(name) for name in sections)])


def _section(name: str) -> str:
    model = section_at((name,))
    # Only the first line: pydantic's own base classes have none that would be worth a page.
    doc = (model.__doc__ or "").strip().splitlines()[0] if model is not None else "The recipe format."
    rows = [_row(key) for key in keys() if key.section == name]
    table = ["| key | type | default | on resume | what it does |", "|---|---|---|---|---|", *rows]
    note = ["", _CONNECTOR_NOTE.strip()] if name == "base" else []
    return "\n".join([f"## {name}", "", doc, "", *table, *note, ""])


def _row(key: Key) -> str:
    cells = [f"`{key.name}`", key.type, f"`{key.default_text}`", CLASSES[key.name], key.doc]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "\\<") for cell in cells) + " |"


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
