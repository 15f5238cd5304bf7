"""Whatever JSON stands in whatever place of a row: it is read, or it is a bad row with a reason, in every format."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qlmm.core import naming
from qlmm.core.errors import DataError
from qlmm.data.errors import BadRow
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.reading.dataset import detect_format, load_format, load_samples
from qlmm.recipe.schema import Source
from tests.fuzz.inputs import FUZZ, mutated, soon, values

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
VALUES = values(KEYS)


@pytest.mark.parametrize("name", NAMES)
@FUZZ
@given(data=st.data())
def test_only_bad_rows_come_out_of_odd_values(name: str, data: st.DataObject, tmp_path: Path) -> None:
    form = load_format(name)
    row = json.loads(json.dumps({**form.example, **{key: None for key in form.media if key not in form.example}}))
    row = mutated(data, row, KEYS)
    row |= data.draw(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=1))
    with soon(), suppress(BadRow):
        form.read(form.answered(row), ImageRoot(tmp_path))
    with soon(), suppress(DataError):
        detect_format("rows.jsonl", [row], question=data.draw(st.booleans()))


@FUZZ
@given(row=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
@example(row={"image": {"bytes": 10**12}, "caption": "A"})
@example(row={"messages": [{"role": ["user"], "content": "Q"}]})
@example(row={"image": "\ud800.png", "caption": "A"})
def test_files_of_odd_values_give_errors_with_their_line(row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n")
    try:
        with soon():
            load_samples([Source(path=str(path))], kind=None)
    except DataError as error:
        for problem in error.problems:
            problem.render().encode("utf-8", errors="backslashreplace")
            assert problem.code != "D001" or (problem.where and problem.where.line == 2)
