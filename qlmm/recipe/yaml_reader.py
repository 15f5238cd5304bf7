"""YAML reduced to data, with the place of every key and value, and no surprises.

Scalars follow the YAML 1.2 core schema: ``1e-4`` is a number, ``no`` and ``12:30`` are text, ``0123`` is 123.
PyYAML scans and parses; its scalar rules are those of YAML 1.1, which turn ``1e-4`` into text and ``no`` into false.
Aliases, anchors, tags, duplicate keys, several documents and outsized documents are problems.

Usage: ``document = parse(text, "recipes/owl_lora.yaml"); document.data["base"]``
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from qlmm.core.errors import Problem, RecipeError, Where

__all__ = ["Document", "KeyPath", "Place", "dump", "excerpt", "parse", "quoted"]

MAX_DEPTH = 20
MAX_NODES = 10_000
# An integer beyond this fits no counter, and huge ones are slow to convert.
MAX_INT = 2**63
LONGEST_EXCERPT = 200
LONGEST_KEY = 60

KeyPath = tuple[str | int, ...]
Scalar = str | int | float | bool | None

# YAML 1.2.2, section 10.3.2 (core schema): what a plain scalar means. Anything else is text.
_CORE: tuple[tuple[str, str, str], ...] = (
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN"),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
)
_PREFIX = "tag:yaml.org,2002:"
_SYNTAX_HELP = {
    "mapping values are not allowed": "put a value that contains `: ` in quotes, and check the indentation",
    "could not find expected ':'": "every line of a section is `key: value`",
    "'\\t'": "indent with spaces, not tabs",
    "expected a single document": "a recipe is one document: take out the `---` in the middle",
    "expected <block end>": "check the indentation: keys of one section start in the same column",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key and its value stand; an item of a list, and the document itself, have no key."""

    key: Where | None
    value: Where


@dataclass(slots=True)
class Document:
    """Plain data, the place of every node, what is wrong with the YAML, and the paths whose values are a guess."""

    data: Any
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[KeyPath] = field(default_factory=set)


class _Reader(yaml.SafeLoader):
    """PyYAML's composer with YAML 1.2 scalars, which counts nodes and reports what recipes may not use."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  PyYAML's own class attribute

    def __init__(self, text: str, file: str, code: str, document: Document) -> None:
        super().__init__(text)
        self.text, self.file, self.code, self.document = text, file, code, document
        self.depth = self.nodes = 0
        self.guessed: set[int] = set()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML has no types here
        start, end = event.start_mark, event.end_mark
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_NODES} keys and values", problem_mark=start)
        if self.depth >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=start)
        guessed = self._refuse_sharing(event)
        if isinstance(event, yaml.AliasEvent):
            self.get_event()  # type: ignore[no-untyped-call]  # PyYAML has no types here
            node: yaml.Node | None = yaml.ScalarNode(f"{_PREFIX}null", "", start, end)
        else:
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
        if guessed:
            self.guessed.add(id(node))
        return node

    def _refuse_sharing(self, event: Any) -> bool:
        """Report an alias, anchor or tag and take it off the event; whether the node's type is now a guess."""
        if isinstance(event, yaml.AliasEvent):
            self._refuse("R004", f"alias `*{quoted(str(event.anchor))}`", event, "write the value out again")
            return True
        if event.anchor is not None:
            help = "take it out; values are written out in full"
            self._refuse("R004", f"anchor `&{quoted(event.anchor)}`", event, help)
            event.anchor = None
        if event.tag is None:
            return False
        self._refuse("R005", "a tag", event, "take the `!…` out: types follow from the key")
        event.tag = None
        return True

    def _refuse(self, code: str, what: str, event: Any, help: str) -> None:
        where = replace(self._where(event.start_mark, event.end_mark), label="not allowed in a recipe")
        self.document.problems.append(Problem(code, f"{what} is not allowed here", where, help))

    def _where(self, start: yaml.Mark, end: yaml.Mark) -> Where:
        return excerpt(self.text, self.file, start.index, end=end.index)

    def value(self, node: yaml.Node, path: KeyPath, key: Where | None) -> Any:
        """A node as plain data; its place goes into the document."""
        where = self._where(node.start_mark, node.end_mark if isinstance(node, yaml.ScalarNode) else node.start_mark)
        self.document.places[path] = Place(key, where)
        if id(node) in self.guessed:
            self.document.broken.add(path)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index), None) for index, item in enumerate(node.value)]
        return self._scalar(node.tag.removeprefix(_PREFIX), node.value, path, where)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, object]:
        data: dict[str, object] = {}
        for key, value in node.value:
            where = self._where(key.start_mark, key.end_mark)
            if not isinstance(key, yaml.ScalarNode):
                self.document.problems.append(Problem(self.code, "a key must be a plain word", where))
            elif key.value in data:
                first = self.document.places[path + (key.value,)].key  # noqa: RUF005  mypy takes (*a, b) here for a slice
                help = f"first given in line {first.line}" if first is not None else None
                self.document.problems.append(Problem("R003", f"key `{quoted(key.value)}` is given twice", where, help))
            else:
                data[key.value] = self.value(value, (*path, key.value), where)
        return data

    def _scalar(self, kind: str, text: str, path: KeyPath, where: Where) -> Scalar:
        value = _resolve(kind, text)
        if (reason := _unusable(value)) is None:
            return value
        self.document.problems.append(Problem("R013", f"{reason} is not allowed", where))
        self.document.broken.add(path)
        return None


class _Dumper(yaml.SafeDumper):
    """PyYAML's writer, quoting by the rules that ``parse`` reads by."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  PyYAML's own class attribute

    def ignore_aliases(self, data: object) -> bool:
        return True


for _name, _pattern, _first in _CORE:
    for _class in (_Reader, _Dumper):
        # An empty plain scalar has no first character; PyYAML looks it up as "".
        _starts = [*_first, ""] if _name == "null" else list(_first)
        _class.add_implicit_resolver(f"{_PREFIX}{_name}", re.compile(_pattern), _starts)


def dump(data: Any) -> str:
    """Data as YAML text that ``parse`` reads back as the same data, keys in their order."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def parse(text: str, file: str, *, code: str = "R002") -> Document:
    """Read one YAML document, whose name in messages is ``file``; problems that leave the rest readable are in it.

    Raises:
        RecipeError: with ``code``, when the text cannot be read to its end.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    document = Document(None)
    try:
        reader = _Reader(text, file, code, document)
        node = reader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message, index = ", ".join(filter(None, (error.problem, error.context))), mark.index if mark is not None else 0
    except yaml.reader.ReaderError as error:
        message, index = f"character U+{int(error.character):04X} is not allowed", int(error.position)
    except (ValueError, OverflowError):
        # chr() of an escape such as \UFFFFFFFF, which PyYAML does not guard.
        message, index = "an escape in quotes names no character", 0
    else:
        document.places[()] = Place(None, Where(file))
        document.data = reader.value(node, (), None) if node is not None else None
        return document
    help = next((way_out for sign, way_out in _SYNTAX_HELP.items() if sign in message), None)
    where = excerpt(text, file, min(index, len(text)))
    raise RecipeError([*document.problems, Problem(code, message, where, help)])


def excerpt(text: str, file: str, start: int, *, end: int = 0) -> Where:
    """The place of ``text[start:end]`` with its line; lines end at line feeds, as editors count them."""
    first = text.rfind("\n", 0, start) + 1
    last = text.find("\n", first)
    line = text[first : last if last >= 0 else len(text)]
    width = max(1, min(end, first + len(line)) - start)
    shown = _printable(line) if len(line) <= LONGEST_EXCERPT else None
    return Where(file, text.count("\n", 0, start) + 1, start - first + 1, shown, width)


def quoted(key: str) -> str:
    """A key as messages quote it: on one line, and short."""
    return _printable(key if len(key) <= LONGEST_KEY else f"{key[:LONGEST_KEY]}…")


def _printable(text: str) -> str:
    """Without what a terminal would act on; one character for one, so that columns stay."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _resolve(kind: str, text: str) -> Scalar:
    """A scalar of the core schema as Python data."""
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        # Python refuses to convert thousands of digits; such a number is reported as too large all the same.
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)) if len(text) <= 100 else math.inf
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _unusable(value: Scalar) -> str | None:
    """Why no key can have this value; None for one that can be used."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    if isinstance(value, int) and abs(value) >= MAX_INT:
        return "a number this large"
    if isinstance(value, str) and re.search(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", value):
        return "a control character"
    return None
