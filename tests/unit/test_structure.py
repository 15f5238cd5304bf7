"""How files depend on each other: no circles, few untyped dictionaries in signatures, tests that mirror the tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.unit.modules import MODULES, ROOT, imports, signatures

# dict[str, Any] in signatures outside JSON readers; may be lowered, never raised.
MOST_UNTYPED = 16


def circles(graph: dict[str, set[str]]) -> Iterator[set[str]]:
    """Sets of modules of which each reaches every other."""
    reach = {name: reached(name, graph) for name in graph}
    found: list[set[str]] = []
    for name in graph:
        together = {other for other in reach[name] if name in reach[other]}
        if together and together not in found:
            found.append(together)
    yield from found


def reached(name: str, graph: dict[str, set[str]]) -> set[str]:
    """Every module that an import leads to, however long the way; the module itself where it leads back."""
    found: set[str] = set()
    ahead = [*graph[name]]
    while ahead:
        one = ahead.pop()
        if one not in found:
            found.add(one)
            ahead += graph[one]
    return found


def test_a_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert list(circles(graph)) == [{"a", "b", "c"}]


def test_no_files_import_each_other() -> None:
    """Imports inside functions count: they only put off the circle. Imports for type checkers do not."""
    graph = {name: imports(name) for name in MODULES}
    assert sum(len(targets) for targets in graph.values()) > 500
    assert list(circles(graph)) == []


def test_few_signatures_take_or_give_an_untyped_dictionary() -> None:
    """``dict[str, Any]``, spelt so, in annotations of parameters and results of functions and methods of qlmm.

    Each time counts, also inside another type. Not counted: functions that call ``json.load`` or ``json.loads``, which
    read JSON, annotations of variables and attributes, and aliases, which give the dictionary a name.
    """
    found = [place for name in MODULES for place in signatures(name, "dict[str, Any]")]
    assert len(found) <= MOST_UNTYPED, "\n".join(found)


def test_unit_tests_mirror_the_tree() -> None:
    folders = {
        path.parent.relative_to(ROOT / "tests" / "unit") for path in (ROOT / "tests" / "unit").rglob("test_*.py")
    }
    assert [folder for folder in folders if folder != Path("pages") and not (ROOT / "qlmm" / folder).is_dir()] == []


def test_no_test_file_is_imported() -> None:
    """What several tests share is a module of its own; private names stay where they are."""
    found = []
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests."):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                if private or (node.module or "").rpartition(".")[2].startswith("test_"):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found
