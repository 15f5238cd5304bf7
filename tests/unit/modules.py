"""The modules of qlmm, what each imports, and where a type stands in its signatures: read off the syntax tree.

Usage: ``imports("qlmm.api")``
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

__all__ = ["MODULES", "ROOT", "imports", "signatures"]

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "qlmm").rglob("*.py")
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(module: str) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(MODULES[module].read_text("utf-8"))


def imports(module: str) -> set[str]:
    """Modules of qlmm that a module imports, at its top or inside a function."""
    found: set[str] = set()
    for node in _run(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module or "" for name in inside}
    return (found & MODULES.keys()) - {module}


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """Everything below a node but what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _run(child)


def signatures(module: str, type_: str) -> list[str]:
    """Where a type stands in the annotation of a parameter or a result, JSON readers left out; one entry each time."""
    functions = [node for node in ast.walk(tree(module)) if isinstance(node, Function) and not _reads_json(node)]
    return [
        f"{MODULES[module].relative_to(ROOT)}:{function.lineno} {function.name}"
        for function in functions
        for annotation in _annotations(function)
        for part in ast.walk(annotation)
        if isinstance(part, ast.expr) and ast.unparse(part) == type_
    ]


def _annotations(function: Function) -> Iterator[ast.expr]:
    given = function.args
    several = [one for one in (given.vararg, given.kwarg) if one is not None]
    for parameter in (*given.posonlyargs, *given.args, *given.kwonlyargs, *several):
        if parameter.annotation is not None:
            yield parameter.annotation
    if function.returns is not None:
        yield function.returns


def _reads_json(function: Function) -> bool:
    called = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return any(ast.unparse(one) in ("json.load", "json.loads") for one in called)
