"""Inputs that nobody wrote: odd values in the places of true ones, and texts with pieces missing, doubled or exchanged.

Usage: ``@FUZZ`` above ``@given(st.data())``; ``raw = mutated(data, true_value)``; ``with soon(): read(raw)``
"""

from __future__ import annotations

import copy
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

__all__ = ["FUZZ", "SCALARS", "damaged", "mutated", "places", "put", "soon", "values"]

# `make fuzz` takes more.
FUZZ = settings(
    max_examples=int(os.environ.get("QLMM_FUZZ", "20")), deadline=None, suppress_health_check=list(HealthCheck)
)
# Of a refusal, in seconds of this process and in bytes that its memory grew by.
MOST_SECONDS, MOST_BYTES = 2.0, 256 << 20
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**18), 10**18), st.floats(), st.text(max_size=8),
    st.sampled_from([10**400, -1, 2**31, 2**63, 1e308, -0.0, 1e-320]),
    st.sampled_from(["\ud800", "[1]", "[null]", '{"a": 1}', "<image>", "nan", "data:image/png;base64,*", "\0"]),
    st.sampled_from(["x" * 70_000, "../" * 40, "\u202e", "e\u0301", "🙈", "1_000", "0x10", "~", "yes", " ", "a\nb"]),
)  # fmt: skip


def values(keys: list[str]) -> st.SearchStrategy[Any]:
    """Any JSON, and numbers that are none; objects have some of the keys."""
    return st.recursive(
        SCALARS,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(keys) | st.text(max_size=6), inner, max_size=3)
            | st.builds(nested, inner, st.sampled_from([2, 30, 200]))
        ),
        max_leaves=6,
    )


def nested(value: Any, depth: int) -> Any:
    """A value in that many lists."""
    for _ in range(depth):
        value = [value]
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in a value."""
    if path:
        yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from places(inner, (*path, key))


def put(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    """The value with something else at a path."""
    if not path:
        return odd
    copied = value.copy()
    copied[path[0]] = put(copied[path[0]], path[1:], odd)
    return copied


def mutated(data: st.DataObject, value: Any, keys: list[str]) -> Any:
    """A value with up to three things in it dropped, renamed or replaced."""
    for _ in range(data.draw(st.integers(1, 3))):
        known = list(places(value))
        if not known:
            return value
        path = data.draw(st.sampled_from(known))
        how = data.draw(st.sampled_from(["replace", "drop", "rename", "wrap", "double"]))
        if how == "replace":
            value = put(value, path, data.draw(values(keys)))
            continue
        value = copy.deepcopy(value)
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        inner = parent.pop(path[-1])
        if isinstance(parent, list):
            parent += {"drop": [], "double": [inner, inner]}.get(how, [[inner]])
        elif how != "drop":
            parent[data.draw(st.sampled_from(keys)) if how == "rename" else path[-1]] = (
                inner if how == "rename" else [inner] if how == "wrap" else {path[-1]: inner}
            )
    return value


def damaged(data: st.DataObject, text: str, alphabet: str) -> str:
    """A text with up to three stretches of it cut out, doubled, moved or exchanged."""
    for _ in range(data.draw(st.integers(1, 3))):
        lines = text.split("\n")
        one = data.draw(st.integers(0, len(lines) - 1))
        other = data.draw(st.integers(0, len(lines) - 1))
        how = data.draw(st.sampled_from(["double", "move", "indent", "characters"]))
        if how == "double":
            lines.insert(other, lines[one])
        elif how == "move":
            lines.insert(other, lines.pop(one))
        elif how == "indent":
            lines[one] = " " * data.draw(st.integers(0, 9)) + lines[one].strip()
        else:
            start = data.draw(st.integers(0, len(lines[one])))
            piece = data.draw(st.text(max_size=6) | st.text(alphabet=alphabet, max_size=6))
            lines[one] = lines[one][:start] + piece + lines[one][start + data.draw(st.integers(0, 12)) :]
        text = "\n".join(lines)
    return text


@contextmanager
def soon() -> Iterator[None]:
    """What stands in the block takes little time and little memory."""
    begun, before = time.process_time(), _peak()
    yield
    assert time.process_time() - begun < MOST_SECONDS
    assert _peak() - before < MOST_BYTES


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
