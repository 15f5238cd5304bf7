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
from qlmm.recipe.resume_rules import on_resume
from qlmm.recipe.schema import Recipe
from qlmm.recipe.schema_keys import Key, as_path, keys, section_at, value_at

__all__ = ["Explained", "describe", "described", "explain", "explained", "facts_in", "facts_of", "reference"]

_INTRODUCTION = """\
# Recipe keys

A recipe is one YAML file of seven sections: `base` (with `connector` inside), `adapter`, `data`, `training`, `output`,
`evaluation`, and `version: 1`. Every key can be overridden on the command line as `section.key=value`, lists by number:
`data.sources.0.path=rows.jsonl`. Relative paths are relative to the current directory.

Values are YAML 1.2: `1e-4` is a number, `no` and `12:30` are text, `true` and `false` are the only truth values.
Unknown keys, duplicate keys, aliases, anchors, tags and access keys are errors.

*On resume* is what a change of the key means for a run that is not finished: `free` may change,
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
    """One key of one recipe, its value and where that comes from: ``file:line``, ``override`` or ``default``."""

    name: str
    key: Key
    value: Any
    origin: str


def explained(loaded: LoadedRecipe) -> Iterator[Explained]:
    """Every key with its value and origin, in the order of the schema."""
    data, connector = loaded.recipe.model_dump(mode="json"), loaded.recipe.base.connector
    for key in keys():
        listed, many, rest = key.name.partition("[]")
        indices = range(len(value_at(data, as_path(listed)))) if many else ()
        for name in [f"{listed}.{index}{rest}" for index in indices] if many else [key.name]:
            yield Explained(name, key, value_at(data, as_path(name)), loaded.origin(name))
        if key.name == "base.connector.kind" and connector is not None:
            # The connector's own settings, as far as they are given: the schema does not know them.
            doc = f"Setting of the connector: see qlmm/model/connectors/{connector.kind}.py."
            for setting, value in (connector.model_extra or {}).items():
                name = f"base.connector.{setting}"
                yield Explained(name, Key(name, doc, "", False), value, loaded.origin(name))


def facts_in(loaded: LoadedRecipe) -> list[dict[str, object]]:
    """What `facts_of` says of each key of a recipe, with its value and where that comes from."""
    return [
        facts_of(one.key) | {"key": one.name, "value": one.value, "origin": one.origin} for one in explained(loaded)
    ]


def explain(loaded: LoadedRecipe) -> str:
    """The whole recipe as text: each key with value, origin, documentation, type and default."""
    return "\n".join(_entry(item) for item in explained(loaded))


def _entry(item: Explained) -> str:
    key = item.key
    value = item.value if isinstance(item.value, str) else json.dumps(item.value, ensure_ascii=False)
    head = f"{item.name} = {'unset' if item.value is None else value}"
    kind = [f"    {key.type}; {_default(key)}"] if key.type else []
    return "\n".join([f"{head:<52} # {item.origin}", f"    {key.doc}", *kind, ""])


def _default(key: Key) -> str:
    return key.default_text if key.required else f"default {key.default_text}"


def described(name: str) -> list[Key]:
    """One key, or all keys of a section; R012 when there is no such key."""
    found = [key for key in keys() if key.name == name or key.name.startswith((f"{name}.", f"{name}[]"))]
    if not found:
        known = [key.name for key in keys()]
        raise RecipeError.one("R012", f"no key is called `{name}`", help=close(name, known).partition("  known")[0])
    return found


def describe(name: str) -> str:
    """What `described` finds, as text."""
    head = "{0.name}\n    {0.doc}\n    {0.type}; {1}; on resume: {2}\n"
    return "\n".join(head.format(key, _default(key), on_resume(key.name)) for key in described(name))


def facts_of(key: Key) -> dict[str, object]:
    """A key for a script: what it does, its type and default, and what a change of it means on resume."""
    return {
        "key": key.name,
        "doc": key.doc,
        "type": key.type,
        "default": key.default_text,
        "required": key.required,
        "on_resume": on_resume(key.name),
    }


def reference() -> str:
    """The reference page of all keys, in Markdown."""
    return "\n".join([_INTRODUCTION, *(_section(name) for name in Recipe.model_fields)])


def _section(name: str) -> str:
    model = section_at((name,))
    doc = (model.__doc__ or "").strip().splitlines()[0] if model is not None else "The recipe format."
    table = ["| key | type | default | on resume | what it does |", "|---|---|---|---|---|"]
    rows = [_row(key) for key in keys() if key.name.partition(".")[0] == name]
    note = ["", _CONNECTOR_NOTE.strip()] if name == "base" else []
    return "\n".join([f"## {name}", "", doc, "", *table, *rows, *note, ""])


def _row(key: Key) -> str:
    cells = [f"`{key.name}`", key.type, f"`{key.default_text}`", on_resume(key.name), key.doc]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "\\<") for cell in cells) + " |"
