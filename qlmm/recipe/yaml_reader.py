"""YAML reduced to data, with the place of every key and value, and no surprises.

Scalars follow the YAML 1.2 core schema: ``1e-4`` is a number, ``no`` and ``12:30`` are text, ``0123`` is 123.
Aliases, anchors, tags, duplicate keys, several documents and outsized documents are problems. PyYAML scans
and parses; its own scalar rules are those of YAML 1.1, which turn ``1e-4`` into text and ``no`` into false.

Usage: ``document = parse(text, "recipes/owl_lora.yaml"); document.data["base"]``
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
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
    """Plain data, the place of every node in it, and what is wrong with its YAML.

    ``broken`` holds the paths of values that had to be guessed (aliases, tags): their types say nothing.
    """

    data: Any
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[KeyPath] = field(default_factory=set)


class _Fatal(Exception):
    """Reading cannot go on: the document is too deep or too large."""

    def __init__(self, message: str, mark: yaml.Mark) -> None:
        super().__init__(message)
        self.message, self.mark = message, mark


Report = Callable[[str, str, yaml.Mark, yaml.Mark, str], None]


class _Loader(yaml.SafeLoader):
    """PyYAML's composer with YAML 1.2 scalars, which counts nodes and reports what recipes may not use."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  PyYAML's own class attribute

    def __init__(self, text: str, report: Report) -> None:
        super().__init__(text)
        self.report = report
        self.depth = self.nodes = 0
        self.guessed: set[int] = set()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML has no types here
        start, end = event.start_mark, event.end_mark
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _Fatal(f"more than {MAX_NODES} keys and values", start)
        if self.depth >= MAX_DEPTH:
            raise _Fatal(f"nested deeper than {MAX_DEPTH} levels", start)
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
        start, end, name = event.start_mark, event.end_mark, event.anchor
        if isinstance(event, yaml.AliasEvent):
            self.report("R004", f"alias `*{quoted(name)}`", start, end, "write the value out again")
            return True
        if name is not None:
            self.report("R004", f"anchor `&{quoted(name)}`", start, end, "take it out; values are written out in full")
            event.anchor = None
        if event.tag is None:
            return False
        self.report("R005", "a tag", start, end, "take the `!…` out: types follow from the key")
        event.tag = None
        return True


class _Dumper(yaml.SafeDumper):
    """PyYAML's writer, quoting by the rules that ``parse`` reads by."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  PyYAML's own class attribute

    def ignore_aliases(self, data: object) -> bool:
        return True


for _name, _pattern, _first in _CORE:
    for _class in (_Loader, _Dumper):
        # An empty plain scalar has no first character; PyYAML looks it up as "".
        _starts = [*_first, ""] if _name == "null" else list(_first)
        _class.add_implicit_resolver(f"{_PREFIX}{_name}", re.compile(_pattern), _starts)


def dump(data: Any) -> str:
    """Data as YAML text that ``parse`` reads back as the same data, keys in their order."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def parse(text: str, file: str, *, code: str = "R002") -> Document:
    """Read one YAML document; problems that leave the rest readable are in the result, one each.

    Args:
        text: the document; line ends may be of any kind.
        file: its name in messages.
        code: code of the error when the text is not YAML at all.

    Raises:
        RecipeError: when the text cannot be read to its end.
    """
    return _Reader(text.replace("\r\n", "\n").replace("\r", "\n"), file, code).read()


def excerpt(text: str, file: str, start: int, *, end: int = 0, label: str = "") -> Where:
    """The place of ``text[start:end]`` with its line; lines end at line feeds, as editors count them."""
    first = text.rfind("\n", 0, start) + 1
    last = text.find("\n", first)
    line = text[first : last if last >= 0 else len(text)]
    width = max(1, min(end, first + len(line)) - start)
    shown = _printable(line) if len(line) <= LONGEST_EXCERPT else None
    return Where(file, text.count("\n", 0, start) + 1, start - first + 1, shown, width, label)


def quoted(key: str) -> str:
    """A key as messages quote it: on one line, and short."""
    return _printable(key if len(key) <= LONGEST_KEY else f"{key[:LONGEST_KEY]}…")


def _printable(text: str) -> str:
    """Without what a terminal would act on; one character for one, so that columns stay."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


class _Reader:
    """One pass over one document."""

    def __init__(self, text: str, file: str, code: str) -> None:
        self.text, self.file, self.code = text, file, code
        self.document = Document(None)
        self.guessed: set[int] = set()

    def read(self) -> Document:
        """Compose the nodes, then turn them into data."""
        try:
            loader = _Loader(self.text, self._report)
            node = loader.get_single_node()
        except _Fatal as error:
            raise self._fatal(error.message, error.mark.index) from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            message = ", ".join(part for part in (error.problem, error.context) if part)
            raise self._fatal(message, mark.index if mark is not None else 0) from None
        except yaml.reader.ReaderError as error:
            raise self._fatal(f"character U+{int(error.character):04X} is not allowed", int(error.position)) from None
        except (ValueError, OverflowError):
            # chr() of an escape such as \UFFFFFFFF, which PyYAML does not guard.
            raise self._fatal("an escape in quotes names no character", 0) from None
        if node is not None:
            self.guessed = loader.guessed
            self.document.data = self._value(node, (), None)
        else:
            self.document.places[()] = Place(None, Where(self.file))
        return self.document

    def _where(self, start: yaml.Mark, end: yaml.Mark, label: str = "") -> Where:
        return excerpt(self.text, self.file, start.index, end=end.index, label=label)

    def _report(self, code: str, message: str, start: yaml.Mark, end: yaml.Mark, help: str) -> None:
        where = self._where(start, end, "not allowed in a recipe")
        self.document.problems.append(Problem(code, f"{message} is not allowed here", where, help))

    def _fatal(self, message: str, index: int) -> RecipeError:
        help = next((text for sign, text in _SYNTAX_HELP.items() if sign in message), None)
        where = excerpt(self.text, self.file, min(index, len(self.text)))
        return RecipeError([*self.document.problems, Problem(self.code, message, where, help)])

    def _value(self, node: yaml.Node, path: KeyPath, key: Where | None) -> Any:
        where = self._where(node.start_mark, node.end_mark if isinstance(node, yaml.ScalarNode) else node.start_mark)
        self.document.places[path] = Place(key, where)
        if id(node) in self.guessed:
            self.document.broken.add(path)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, index), None) for index, item in enumerate(node.value)]
        return self._scalar(node.tag.removeprefix(_PREFIX), node.value, path, where)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, object]:
        data: dict[str, object] = {}
        for key, value in node.value:
            where = self._where(key.start_mark, key.end_mark)
            if not isinstance(key, yaml.ScalarNode):
                self.document.problems.append(Problem(self.code, "a key must be a plain word", where))
            elif key.value in data:
                first = self.document.places[path + (key.value,)].key  # noqa: RUF005  mypy takes (*a, b) here for a slice
                twice = f"first given in line {first.line}" if first is not None else None
                self.document.problems.append(
                    Problem("R003", f"key `{quoted(key.value)}` is given twice", where, twice)
                )
            else:
                data[key.value] = self._value(value, (*path, key.value), where)
        return data

    def _scalar(self, kind: str, text: str, path: KeyPath, where: Where) -> Scalar:
        value = _resolve(kind, text)
        reason = _unusable(value)
        if reason is not None:
            self.document.problems.append(Problem("R013", f"{reason} is not allowed", where))
            self.document.broken.add(path)
            return None
        return value


def _resolve(kind: str, text: str) -> Scalar:
    """A scalar of the core schema as Python data."""
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return _integer(text)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _integer(text: str) -> int | float:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    # Python refuses to convert thousands of digits; such a number is reported as too large all the same.
    return int(text, base) if len(text) <= 100 else math.inf


def _unusable(value: Scalar) -> str | None:
    """Why a scalar can be the value of no key; None for one that can be used."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    if isinstance(value, int) and abs(value) >= MAX_INT:
        return "a number this large"
    if isinstance(value, str) and re.search(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", value):
        return "a control character"
    return None
