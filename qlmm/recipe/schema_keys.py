"""The keys a recipe may have, read off the schema: names, types, defaults, documentation.

Usage: ``[key.name for key in keys()]`` gives ``base.model``, …, ``data.sources[].path``, …
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from qlmm.recipe.schema import Recipe
from qlmm.recipe.yaml_reader import KeyPath

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue

__all__ = ["Key", "as_path", "as_text", "keys", "section_at", "value_at"]

_WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "object": "keys"}
_LIMITS = (("exclusiveMinimum", ">"), ("minimum", ">="), ("exclusiveMaximum", "<"), ("maximum", "<="))


@dataclass(frozen=True, slots=True)
class Key:
    """One leaf key of the schema; ``[]`` in its name stands for the number of a list's entry."""

    name: str
    doc: str
    type: str
    required: bool
    default: Any = None

    @property
    def default_text(self) -> str:
        """The default as it would be written in a recipe."""
        if self.required:
            return "required"
        return "unset" if self.default is None else json.dumps(self.default).strip('"')


def as_path(key: str) -> KeyPath:
    """``data.sources.0.path`` -> ``("data", "sources", 0, "path")``."""
    return tuple(int(part) if re.fullmatch(r"[0-9]{1,6}", part) else part for part in key.split("."))


def as_text(path: KeyPath) -> str:
    """``("data", "sources", 0, "path")`` -> ``data.sources.0.path``."""
    return ".".join(str(part) for part in path)


def value_at(data: Any, path: KeyPath) -> Any:
    """What stands at a path in plain data; None below an empty section."""
    for part in path:
        data = data[part] if data is not None else None
    return data


def section_at(path: KeyPath) -> type[BaseModel] | None:
    """The schema's model that stands at ``path``; None for a leaf or a path that does not exist."""
    model: type[BaseModel] | None = Recipe
    for part in path:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if model is not None else None
        model = _model_in(field.annotation) if field is not None else None
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside ``X``, ``X | None`` or ``tuple[X, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner)) is not None), None)


@cache
def keys() -> tuple[Key, ...]:
    """Every leaf key, in the order of the schema. A kind of entry that was listed once is a leaf where it returns."""
    schema = Recipe.model_json_schema()
    return tuple(_leaves(schema, schema.get("$defs", {}), "", set()))


def _leaves(schema: JsonSchemaValue, models: JsonSchemaValue, prefix: str, seen: set[str]) -> Iterator[Key]:
    required = schema.get("required", [])
    for name, field in schema["properties"].items():
        full = prefix + name
        model, is_list = _model_name(field)
        if model is None or model in seen:
            # Only sources are listed twice.
            kind = "list of entries as in data.sources" if model is not None else _type(field)
            yield Key(full, field.get("description", ""), kind, name in required, field.get("default"))
            continue
        seen.add(model)
        for key in _leaves(models[model], models, f"{full}[]." if is_list else f"{full}.", seen):
            # What a section needs is not needed where the section itself may be left out.
            yield replace(key, required=key.required and "anyOf" not in field)


def _model_name(field: JsonSchemaValue) -> tuple[str | None, bool]:
    """Name of the model that a field is, if any, and whether it is a list of them."""
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2], False
    if "items" in field:
        return _model_name(field["items"])[0], True
    return next((_model_name(kind) for kind in field.get("anyOf", ()) if kind.get("type") != "null"), (None, False))


def _type(field: JsonSchemaValue) -> str:
    if "anyOf" in field:
        return next(_type(kind) for kind in field["anyOf"] if kind.get("type") != "null")
    if "enum" in field or "const" in field:
        return " | ".join(str(value) for value in field.get("enum", [field.get("const")]))
    if "items" in field:
        return f"list of {_type(field['items'])}"
    limits = [f"{sign} {field[name]:g}" for name, sign in _LIMITS if name in field]
    return " ".join(["name" if "pattern" in field else _WORDS[field["type"]], " and ".join(limits)]).strip()
