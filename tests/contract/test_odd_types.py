"""Whatever JSON stands in whatever place of a row: it is read, or it is a bad row with a reason, in every format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qlmm.core import naming
from qlmm.core.errors import DataError
from qlmm.data.errors import BadRow
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.reading.dataset import detect_format, load_format, load_samples
from qlmm.recipe.schema import Source

NAMES = naming.names("qlmm.data.formats")
INNER = [
    "role",
    "content",
    "from",
    "value",
    "type",
    "text",
    "image",
    "image_url",
    "url",
    "bytes",
    "path",
    "video",
    "user",
]
KEYS = sorted({*INNER, *(key for name in NAMES for key in (*load_format(name).example, *load_format(name).media))})
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**18), 10**18), st.floats(), st.text(max_size=8),
    st.sampled_from(["\ud800", "[1]", "[null]", '{"a": 1}', "<image>", "nan", "data:image/png;base64,*", "\0"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in a row."""
    if path:
        yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from places(inner, (*path, key))


def put(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    """The value with something else at a path."""
    if not path:
        return odd
    copy = value.copy()
    copy[path[0]] = put(copy[path[0]], path[1:], odd)
    return copy


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_only_bad_rows_come_out_of_odd_values(name: str, data: st.DataObject, tmp_path: Path) -> None:
    form = load_format(name)
    row = json.loads(json.dumps({**form.example, **{key: None for key in form.media if key not in form.example}}))
    for _ in range(data.draw(st.integers(1, 2))):
        row = put(row, data.draw(st.sampled_from(list(places(row)))), data.draw(VALUES))
    row |= data.draw(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=1))
    with suppress(BadRow):
        form.read(form.answered(row), ImageRoot(tmp_path))
    with suppress(DataError):
        detect_format("rows.jsonl", [row], question=data.draw(st.booleans()))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(row=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
@example(row={"image": {"bytes": 10**12}, "caption": "A"})
@example(row={"messages": [{"role": ["user"], "content": "Q"}]})
@example(row={"image": "\ud800.png", "caption": "A"})
def test_files_of_odd_values_give_errors_with_their_line(row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n")
    try:
        load_samples([Source(path=str(path))], kind=None)
    except DataError as error:
        for problem in error.problems:
            problem.render().encode("utf-8", errors="backslashreplace")
            assert problem.code != "D001" or (problem.where and problem.where.line == 2)
