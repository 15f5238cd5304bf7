"""YAML and Python on the pages are what they claim to be: keys of a recipe, names that exist."""

from __future__ import annotations

import ast
import importlib
import re
from types import ModuleType
from typing import Any

import pytest
import yaml

from qlmm.recipe.load import parse_recipe
from qlmm.recipe.schema import Recipe
from tests.pages import ROOT, Block, blocks, spans

# The least a recipe needs; a fragment on a page replaces whole sections.
LEAST: dict[str, Any] = {
    "version": 1,
    "base": {"model": "owner/model"},
    "data": {"sources": [{"path": "rows.jsonl"}]},
    "output": {"dir": "runs/example"},
}
SECTIONS = "base|adapter|data|training|output|evaluation"
KEY = re.compile(rf"((?:{SECTIONS})(?:\.[a-z_0-9]+)+)(?:[=:] ?(\S.*))?")
SCHEMA: dict[str, Any] = Recipe.model_json_schema()
YAML, PYTHON = blocks("yaml"), blocks("python")


def test_pages_show_both() -> None:
    assert len(YAML) >= 5
    assert len(PYTHON) >= 5


@pytest.mark.parametrize("block", YAML, ids=str)
def test_a_fragment_of_a_recipe_loads(block: Block) -> None:
    fragment = yaml.safe_load(block.text)
    rest = {section: keys for section, keys in LEAST.items() if section not in fragment}
    loaded = parse_recipe(block.text + (yaml.safe_dump(rest) if rest else ""), "page.yaml").recipe
    values = loaded.model_dump(mode="json")
    for section, keys in fragment.items():
        for key, value in keys.items() if isinstance(keys, dict) else ():
            # YAML 1.1, which reads the fragment here, takes 1e-4 for text.
            if isinstance(value, int) or (isinstance(value, str) and not value[0].isdigit()):
                assert values[section][key] == value, f"{section}.{key}"


def exists(key: str) -> bool:
    """Whether the schema has a key, read off pydantic's JSON schema; entries of lists are numbers."""
    here, definitions = SCHEMA, SCHEMA["$defs"]
    for word in key.split("."):
        for option in here.get("anyOf", []):
            here = option if option.get("type") != "null" else here
        here = here.get("allOf", [here])[0]
        here = definitions[here["$ref"].rpartition("/")[2]] if "$ref" in here else here
        if word.isdigit() and here.get("type") == "array":
            here = here["items"]
        elif word in here.get("properties", {}):
            here = here["properties"][word]
        else:  # a mapping of any names, such as training.extra
            return here.get("type") == "object" and here.get("additionalProperties", True) is not False
    return True


def test_keys_are_told_from_what_is_none() -> None:
    assert exists("training.steps")
    assert exists("data.sources.0.path")
    assert exists("base.connector.kind")
    assert exists("training.extra.beta")
    assert not exists("training.stesp")
    assert not exists("data.sources.0.pathh")


def test_every_key_named_in_a_sentence_or_command_exists() -> None:
    shown = [one.text for one in spans()] + [word for block in blocks("bash") for word in block.text.split()]
    found = {match[1] for text in shown if (match := KEY.fullmatch(text))}
    assert len(found) > 30
    assert not [key for key in found if not exists(key)]


def test_the_page_of_keys_has_every_key_of_the_schema_with_its_default() -> None:
    """Read off pydantic's JSON schema, not off the generator of the page."""
    page = (ROOT / "docs" / "recipe.md").read_text("utf-8")
    sections = {name: entry for name, entry in SCHEMA["properties"].items() if "$ref" in entry}
    assert sections.keys() >= {"base", "adapter", "data", "training", "output", "evaluation"}
    for section, entry in sections.items():
        for key, facts in SCHEMA["$defs"][entry["$ref"].rpartition("/")[2]]["properties"].items():
            rows = re.findall(rf"^\| `{section}\.{key}(?:[\[.][^`]*)?` \| (.*?) \| `(.*?)` \|", page, re.MULTILINE)
            assert rows, f"{section}.{key}"
            default = facts.get("default")
            if isinstance(default, str | int | float) and len(rows) == 1:
                assert rows[0][1] in (str(default), str(default).lower()), f"{section}.{key}"


def resolve(tree: ast.Module) -> dict[str, Any]:
    """What a block's imports bind."""
    made: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
                top = alias.name if alias.asname else alias.name.partition(".")[0]
                made[alias.asname or top] = importlib.import_module(top)
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            made |= {alias.asname or alias.name: vars(module).get(alias.name) for alias in node.names}
    return made


@pytest.mark.parametrize("block", [one for one in PYTHON if "# model, processor" in one.text], ids=str)
def test_what_load_gives_has_what_the_pages_say(block: Block) -> None:
    from qlmm.artifacts.adapter.load import LoadedAdapter

    (said,) = re.findall(r"qlmm\.load\(.*\)  # (.*)", block.text)
    has = set(LoadedAdapter.__annotations__) | set(vars(LoadedAdapter))
    assert {name.strip() for name in said.split(",")} <= has


# CONTRIBUTING's blocks are run by tests/contract/test_contributing.py.
@pytest.mark.parametrize("block", [one for one in PYTHON if one.page != "CONTRIBUTING.md"], ids=str)
def test_names_in_a_block_of_python_exist(block: Block) -> None:
    tree = ast.parse(block.text)
    made = resolve(tree)
    assert None not in made.values(), f"{block}: a name that its module does not have"
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    for node in used:
        owner = made.get(node.value.id) if isinstance(node.value, ast.Name) else None
        if isinstance(owner, ModuleType | type):
            assert node.attr in dir(owner), f"{block}: {ast.unparse(node)}"
    assert made
