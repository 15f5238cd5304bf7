"""The house rules, as far as a machine can check them; CONTRIBUTING.md says why they are there."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest

from qlmm.core.env import VARIABLES

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sorted((ROOT / "qlmm").rglob("*.py"))
PYTHON = sorted(
    path for folder in ("qlmm", "tests", "benchmarks", "maintenance") for path in (ROOT / folder).rglob("*.py")
)
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".jinja", ".json", ".cfg", ""}

MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}
MAY_PRINT = {"qlmm/cli/output/console.py"}
# The edge of the program, where every unknown error must still end in one line and an exit code; and the calls of
# trackers, other people's code for other people's servers, whose errors have no class in common.
MAY_CATCH_ALL = {"qlmm/cli/edge.py", "qlmm/training/trackers.py"}
# None: a missing attribute must be an error. A file that needs one is named here, with the reason.
MAY_ASK_FOR_ATTRIBUTES: dict[str, str] = {}
MAY_READ_THE_ENVIRONMENT = {"qlmm/core/env.py"}
Function = ast.FunctionDef | ast.AsyncFunctionDef
Node = TypeVar("Node", bound=ast.AST)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def nodes(path: Path, kind: type[Node]) -> Iterator[Node]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, kind))


def calls(path: Path, *names: str) -> list[str]:
    """Where a builtin is called by name."""
    called = (node for node in nodes(path, ast.Call) if isinstance(node.func, ast.Name) and node.func.id in names)
    return [f"{name_of(path)}:{node.lineno}" for node in called]


@cache
def tracked() -> list[Path]:
    """Text files that belong to the project: what git knows or would add; without git, what is not hidden or built."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        paths = [ROOT / line for line in done.stdout.splitlines()]
    else:
        folders = ("qlmm", "tests", "recipes", "docs", "benchmarks", "maintenance")
        paths = [*ROOT.glob("*"), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    return [path for path in paths if path.is_file() and path.suffix in TEXT and "__pycache__" not in path.parts]


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_a_file_is_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES


def body_lines(function: Function) -> int:
    """Lines of a function's body, its docstring not counted."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    body = function.body[1:] if documented else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{name_of(path)}:{node.lineno} {node.name}"
        for path in PYTHON
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and body_lines(node) > MOST_LINES_OF_A_FUNCTION
    ]
    assert not long


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    assert not [name_of(path) for path in PYTHON if {path.stem, path.parent.name} & FORBIDDEN_NAMES]


def test_only_the_console_prints() -> None:
    assert not [place for path in PACKAGE if name_of(path) not in MAY_PRINT for place in calls(path, "print")]


def test_attributes_are_named_not_asked_for() -> None:
    """``getattr`` with a default turns a misspelt or renamed setting of a model's configuration into silence."""
    checked = [path for path in PACKAGE if name_of(path) not in MAY_ASK_FOR_ATTRIBUTES]
    assert not [place for path in checked for place in calls(path, "getattr", "hasattr")]
    assert len(MAY_ASK_FOR_ATTRIBUTES) <= 3


def test_no_handler_catches_everything_and_goes_on() -> None:
    checked = [path for path in PACKAGE if name_of(path) not in MAY_CATCH_ALL]
    handlers = [(path, node) for path in checked for node in nodes(path, ast.ExceptHandler)]
    assert not [f"{name_of(path)}:{node.lineno}" for path, node in handlers if catches_all(node)]


def catches_all(handler: ast.ExceptHandler) -> bool:
    """Whether a handler takes any exception and does not raise it again at its end."""
    named = {one.id for one in ast.walk(handler.type) if isinstance(one, ast.Name)} if handler.type else set()
    broad = handler.type is None or bool(named & {"Exception", "BaseException"})
    return broad and not isinstance(handler.body[-1], ast.Raise)


def may_run_code(call: ast.Call) -> bool:
    """Whether a loading call leaves it to transformers to ask if code of a repository may run."""
    if not (isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained"):
        return False
    if ast.unparse(call.func.value) in ("PeftModel", "LoraConfig"):  # PEFT's own files hold no code
        return False
    named = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}
    spread = [ast.unparse(word.value) for word in call.keywords if word.arg is None]
    return named.get("trust_remote_code") != "False" and not any(one.endswith(".options") for one in spread)


def test_no_loading_call_can_run_code_of_a_repository() -> None:
    """`Located.options` holds the refusal; every other call spells it out."""
    loading = [(path, node) for path in PACKAGE for node in nodes(path, ast.Call)]
    assert not [f"{name_of(path)}:{node.lineno}" for path, node in loading if may_run_code(node)]


def test_types_are_ignored_only_by_code_and_with_a_reason() -> None:
    whole = re.compile(r"# type: ignore\[[\w, -]+\]  # \S")
    lines = [(path, line) for path in PACKAGE for line in path.read_text("utf-8").splitlines()]
    assert not [name_of(path) for path, line in lines if "type: ignore" in line and not whole.search(line)]


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_a_module_says_what_it_is_and_how_it_is_used(path: Path) -> None:
    doc = ast.get_docstring(tree(path)) or ""
    assert doc, "no docstring"
    assert "Usage:" in doc or is_list_of_extensions(path) or is_command(path), "no usage line"
    assert "\nfrom __future__ import annotations\n" in path.read_text("utf-8") or len(tree(path).body) == 1


def is_list_of_extensions(path: Path) -> bool:
    """The docstring-only ``__init__`` of a folder whose files are found by name has nothing to show."""
    return path.name == "__init__.py" and len(tree(path).body) == 1


def is_command(path: Path) -> bool:
    """A command shows how it is used at the end of its help."""
    return path.parent.name == "commands" and "Example" in path.read_text("utf-8")


@pytest.mark.parametrize("path", [path for path in PACKAGE if not path.stem.startswith("__")], ids=name_of)
def test_public_names_are_listed_and_documented(path: Path) -> None:
    body = tree(path).body
    listed = [node for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    assert listed, "no __all__"
    assert set(ast.literal_eval(listed[0].value)) <= {name for node in body for name in bound(node)}
    assert not list(undocumented(tree(path)))


def undocumented(scope: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[str]:
    """Public functions, classes and methods without a docstring."""
    for node in scope.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node, f"{node.name}.")


def bound(node: ast.stmt) -> set[str]:
    """Names that a top-level statement binds."""
    if isinstance(node, Function | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}


def test_nothing_is_imported_by_star_or_left_to_be_done() -> None:
    imports = [(path, node) for path in PACKAGE for node in nodes(path, ast.ImportFrom)]
    assert not [name_of(path) for path, node in imports if any(alias.name == "*" for alias in node.names)]
    undone = re.compile(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError")
    assert not [name_of(path) for path in PACKAGE if undone.search(path.read_text("utf-8"))]


def test_the_environment_is_read_in_one_place() -> None:
    reads = re.compile(r"\bos\.(environ|getenv)\b")
    found = {name_of(path) for path in PACKAGE if reads.search(path.read_text("utf-8"))}
    assert found <= MAY_READ_THE_ENVIRONMENT


def test_no_file_speaks_of_the_machine_or_the_day_it_was_written() -> None:
    this = Path(__file__)
    paths = re.compile(r"(?<![\w.])/(?:work|root|home/\w+)/")
    words = re.compile(r"\bsessions?\b|\bissue #", re.IGNORECASE)
    meant = re.compile(r'scope="session"')
    found = []
    for path in tracked():
        if path == this or path.name == "LICENSE":
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if paths.search(line) or words.search(meant.sub("", line)):
                found.append(f"{name_of(path)}:{number}: {line.strip()[:80]}")
    assert not found


def test_the_pages_a_newcomer_looks_for_are_there() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "recipes/README.md", "docs/README.md"):
        assert len((ROOT / name).read_text("utf-8")) > 400, name


def test_pages_link_only_to_files_that_are_there() -> None:
    link = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s#]+)")
    pages = [path for path in tracked() if path.suffix == ".md"]
    broken = [
        f"{name_of(page)}: {target}"
        for page in pages
        for target in link.findall(page.read_text("utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not broken


def test_every_recipe_opens_with_what_it_is() -> None:
    from qlmm.recipe.library import LABELS, header, shipped

    assert shipped()
    for path in shipped().values():
        about = header(path)
        assert about.summary, path.name
        assert set(about.facts) == set(LABELS), path.name


def test_no_test_leaves_this_machine() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with socket.socket() as far, pytest.raises(pytest.fail.Exception, match="reached for the network"):
        far.connect(("192.0.2.1", 80))
    with socket.socket() as named, pytest.raises(pytest.fail.Exception, match="reached for the network"):
        named.connect_ex(("example.org", 80))
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())


def test_every_variable_that_is_read_is_documented() -> None:
    assert all(variable.doc.endswith(".") for variable in VARIABLES)
    assert len({variable.name for variable in VARIABLES}) == len(VARIABLES)


def test_the_suite_itself_starts_without_torch() -> None:
    code = "import sys, tests.conftest; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
