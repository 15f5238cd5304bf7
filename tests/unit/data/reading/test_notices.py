"""Keys that are not read, markers that show nothing and rendered turns are counted once a source, and named."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qlmm.data.reading.dataset import Loaded, load_samples
from qlmm.data.reading.notices import Notices
from qlmm.data.sample import Origin, Sample, Turn
from qlmm.data.tracked import Tracked
from qlmm.recipe.schema import Source


def load(folder: Path, *rows: dict[str, Any]) -> Loaded[Any]:
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_samples([Source(path=str(path))], kind=None)


def row(question: str = "Q", answer: str = "A", **keys: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **keys}


def test_unread_keys_are_one_line_a_source(tmp_path: Path) -> None:
    loaded = load(tmp_path, row(id="1", model="m"), row(id="2", model=None), row(note=""))
    assert loaded.unused == (f"{tmp_path}/rows.jsonl: not used: `id` (2 rows), `model` (1 row)",)
    assert loaded.warnings == ()
    assert load(tmp_path, row()).unused == ()


def test_half_a_file_with_another_name_for_its_pictures_sees_all_of_them(tmp_path: Path) -> None:
    loaded = load(tmp_path, row(image="a.png"), row(images=["a.png"]), row(img="a.png"))
    assert [len(sample.images) for sample in loaded.samples] == [1, 1, 1]


def test_markers_that_show_nothing_are_counted(tmp_path: Path) -> None:
    loaded = load(tmp_path, row("Hi"), row("<image>\nQ"), row("<image 1> Q"), row("<image>Q", image="a.png"))
    (warning,) = loaded.warnings
    assert warning.startswith(
        f"markers without a picture: 2 rows (`<image>`, `<image 1>`), first {tmp_path}/rows.jsonl:2;"
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("<|im_start|>user\nQ<|im_end|>", "<|im_start|>"),
        ("<|start_header_id|>user<|end_header_id|>\n\nQ", "<|start_header_id|>"),
        ("[INST] Q [/INST]", "[INST]"),
        ("<start_of_turn>user\nQ", "<start_of_turn>"),
        ("<｜User｜>Q<｜Assistant｜>", "<｜User｜>"),
        ("A chat. USER: Q ASSISTANT: A</s>", "USER: … ASSISTANT:"),
        ("Human: Q\nAssistant: A", "Human: … Assistant:"),
        ("### Instruction:\nQ\n### Response:\nA", "### Instruction: … ### Response:"),
    ],
)
def test_rendered_turns_are_named(tmp_path: Path, text: str, name: str) -> None:
    for one in (row(text), row(answer=text), {"prompt": "Q", "chosen": text, "rejected": "B"}):
        (warning,) = load(tmp_path, one).warnings
        assert warning.startswith("marks of a chat template in texts: 1 row (")
        assert f"`{name}`" in warning


@pytest.mark.parametrize(
    "text", ["The USER: manual", "a <b> tag", "x [INSTALL] y", "Human: nature", "|im_start|", "### Notes:"]
)
def test_plain_text_is_not_taken_for_rendered_turns(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, row(text)).warnings == ()


def test_long_hostile_texts_take_no_time() -> None:
    started, notices = time.perf_counter(), Notices("rows")
    for piece in ("USER: ", "Human: ", "<|a", "<image", "<｜", "### Human:\n"):
        notices.add(Tracked({}), Sample((Turn("user", (piece * 200_000,)),), Origin("rows", 1)))
    assert time.perf_counter() - started < 5
