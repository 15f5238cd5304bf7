"""Rows that were converted and read again are the same rows, with the same pictures."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from qlmm.core.errors import DataError
from qlmm.data.media.images import decode
from qlmm.data.reading.convert import convert
from qlmm.data.reading.dataset import load_samples
from qlmm.data.sample import ImageRef, Turn
from qlmm.recipe.schema import Source


def picture(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(stream, "PNG")
    return stream.getvalue()


def read(path: Path, **settings: Any) -> list[Any]:
    return list(load_samples([Source(path=str(path), **settings)], kind=None).samples)


def content(rows: list[Any]) -> list[Any]:
    """All that is learned from, pictures by what they show."""

    def shown(turn: Turn) -> Any:
        parts = [decode(part).tobytes() if isinstance(part, ImageRef) else part for part in turn.parts]
        return (turn.role, parts)

    return [(type(row), [shown(turn) for turn in row.content]) for row in rows]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1, max_size=9).filter(
    str.strip
)
PICTURE = st.sampled_from(["in/a.png", "b.png", {"bytes": base64.b64encode(picture("blue")).decode(), "path": None}])
PARTS = st.lists(
    TEXT.map(lambda text: {"type": "text", "text": text}) | PICTURE.map(lambda one: {"type": "image", "image": one}),
    min_size=1,
    max_size=3,
)
ASKED = PARTS.map(lambda parts: {"role": "user", "content": parts})
ANSWER = TEXT.map(lambda text: {"role": "assistant", "content": text})
SYSTEM = st.just([]) | TEXT.map(lambda text: [{"role": "system", "content": text}])
PROMPT = st.builds(
    lambda system, first, past: [*system, *past, first], SYSTEM, ASKED, st.just([]) | st.tuples(ASKED, ANSWER)
)
ROWS = st.one_of(
    st.lists(st.builds(lambda asked, answer: {"messages": [*asked, answer]}, PROMPT, ANSWER), min_size=1, max_size=3),
    st.lists(
        st.builds(
            lambda asked, answer: {
                "prompt": asked,
                "chosen": [answer],
                "rejected": [{"role": "assistant", "content": answer["content"] + "!"}],
            },
            PROMPT,
            ANSWER,
        ),
        min_size=1,
        max_size=3,
    ),
    st.lists(
        st.builds(
            lambda asked, answer, label: {"prompt": asked, "completion": [answer], "label": label},
            PROMPT,
            ANSWER,
            st.booleans(),
        ),
        min_size=1,
        max_size=3,
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=ROWS)
@pytest.mark.parametrize("place", ["same", "below", "elsewhere"])
def test_what_was_converted_reads_the_same(
    rows: list[dict[str, Any]], place: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "in").mkdir()
    (folder / "in" / "a.png").write_bytes(picture("red"))
    (folder / "b.png").write_bytes(picture("green"))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    target = {"same": folder, "below": folder / "in", "elsewhere": tmp_path_factory.mktemp("other")}[
        place
    ] / "out.jsonl"
    before = read(folder / "rows.jsonl")
    convert(before, target)
    assert content(read(target)) == content(before)


def test_pictures_are_named_where_they_lie_and_written_where_they_do_not(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture("red"))
    inline = "data:image/png;base64," + base64.b64encode(picture("blue")).decode()
    rows = [{"image": "a.png", "caption": "A"}, *[{"image": inline, "caption": "B"}] * 2]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert convert(read(tmp_path / "rows.json"), tmp_path / "out.jsonl") == 1
    first, second, third = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert first["images"] == ["a.png"]
    assert second["images"] == third["images"]
    assert (tmp_path / second["images"][0]).read_bytes() == picture("blue")
    with pytest.raises(DataError, match="is there already") as caught:
        convert([], tmp_path / "out.jsonl")
    assert caught.value.problems[0].code == "D012"
