"""Every file of qlmm/data/formats keeps the contract: its example reads, is its own, and bad rows are explained."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import qlmm
from qlmm.core import naming
from qlmm.core.errors import DataError
from qlmm.data.contract import Format
from qlmm.data.errors import BadRow
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.reading.dataset import detect_format, load_format
from qlmm.data.sample import ImageRef, Turn
from tests.contract import feedback_rows, preference_rows, published_rows

ROOT = Path(qlmm.__file__).parent
NAMES = naming.names("qlmm.data.formats")
# What handles rows of every format, and words that stand in its messages, whatever the columns are called.
NEUTRAL = [ROOT / "data/contract.py", ROOT / "preference_data/prompts.py", *(ROOT / "data/reading").glob("*.py")]
WORDS = {"chosen", "rejected", "question", "answer"}


@pytest.fixture
def images(tmp_path: Path) -> ImageRoot:
    return ImageRoot(tmp_path)


def told(turns: tuple[Turn, ...]) -> list[tuple[Any, ...]]:
    """Turns as plain values: pictures by name in angle brackets."""
    return [(t.role, *(f"<{p.name}>" if isinstance(p, ImageRef) else p for p in t.parts)) for t in turns]


GOLDEN: dict[str, list[tuple[Mapping[str, Any], list[tuple[Any, ...]]]]] = {
    "llava": [
        (
            {
                "id": 7,
                "image": ["a.png", "b/c.png"],
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "Compare <image> with\n<image>"},
                    {"from": "gpt", "value": "One is red."},
                    {"from": "human", "value": "Which?"},
                    {"from": "gpt", "value": "The first; <image> is no place here."},
                ],
            },
            [
                ("system", "Be brief."),
                ("user", "Compare ", "<a.png>", " with", "<c.png>"),
                ("assistant", "One is red."),
                ("user", "Which?"),
                ("assistant", "The first; <image> is no place here."),
            ],
        ),
        (
            {"image": "a.png", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
            [("user", "<a.png>", "Hi"), ("assistant", "Ho")],
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
            [("user", "Hi"), ("assistant", "Ho")],
        ),
        (
            {
                "image": "a.png",
                "conversations": [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "A"}],
            },
            [("user", "What?", "<a.png>"), ("assistant", "A")],
        ),
        (
            {
                "video": ["a.png", "b.png"],
                "conversations": [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A"}],
            },
            [("user", "<a.png>", "<b.png>", "What?"), ("assistant", "A")],
        ),
    ],
    "messages": [
        (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
            [("user", "Hi"), ("assistant", "Ho")],
        ),
        (
            {
                "messages": [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "A"}],
                "videos": [["a.png", "b.png"]],
            },
            [("user", "<a.png>", "<b.png>", "What?"), ("assistant", "A")],
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "S"},
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "A "},
                            {"type": "image_url", "image_url": {"url": "a.png"}},
                            {"type": "image", "image": "b.png"},
                        ],
                    },
                    {"role": "assistant", "content": [{"type": "text", "text": "Ho"}]},
                ]
            },
            [("system", "S"), ("user", "A ", "<a.png>", "<b.png>"), ("assistant", "Ho")],
        ),
        (
            {
                "images": ["a.png", "b.png"],
                "messages": [
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "A", "image": None}]},
                    {"role": "assistant", "content": "1"},
                    {"role": "user", "content": [{"type": "image", "text": None}]},
                    {"role": "assistant", "content": "2"},
                ],
            },
            [("user", "<a.png>", "A"), ("assistant", "1"), ("user", "<b.png>"), ("assistant", "2")],
        ),
        (
            {"image": "a.png", "prompt": "What?", "completion": "A cat."},
            [("user", "<a.png>", "What?"), ("assistant", "A cat.")],
        ),
        (
            {
                "images": ["a.png"],
                "prompt": [{"role": "user", "content": "Look:\n<image>\nWhat?"}],
                "completion": [{"role": "assistant", "content": "A cat."}],
            },
            [("user", "Look:", "<a.png>", "What?"), ("assistant", "A cat.")],
        ),
        (
            {"messages": [{"role": "user", "content": "Say <image>"}, {"role": "assistant", "content": "<image>"}]},
            [("user", "Say <image>"), ("assistant", "<image>")],
        ),
    ],
    "owl": [
        (
            {
                "text": "S.\nHuman: <image>\nHuman: <image>\nHuman: hi\nAI: yo\nHuman: b\nAI: c",
                "image": ["a.png", "b.png"],
            },
            [
                ("system", "S."),
                ("user", "<a.png>", "<b.png>", "hi"),
                ("assistant", "yo"),
                ("user", "b"),
                ("assistant", "c"),
            ],
        ),
        ({"text": "Human: hi\nAI: yo", "task_type": "quora_chat_sft"}, [("user", "hi"), ("assistant", "yo")]),
        ({"text": "S.\nHuman: hi\nAI: say AI: ok"}, [("system", "S."), ("user", "hi"), ("assistant", "say AI: ok")]),
        ({"text": "S.\nHuman: a\nHuman: b\nAI: c"}, [("system", "S."), ("user", "a\nb"), ("assistant", "c")]),
    ],
    "caption": [
        ({"image": "a.png", "text": " A cat. "}, [("user", "<a.png>"), ("assistant", "A cat.")]),
        (
            {"file_name": "a.png", "caption": "A cat.", "instruction": "Describe."},
            [("user", "<a.png>", "Describe."), ("assistant", "A cat.")],
        ),
        ({"images": ["a.png", "b.png"], "text": "Cats."}, [("user", "<a.png>", "<b.png>"), ("assistant", "Cats.")]),
        *(
            ({"image": nothing, "text": "Pear.", "instruction": "Fruit?"}, [("user", "Fruit?"), ("assistant", "Pear.")])
            for nothing in (None, "", [], [None], [""], [float("nan")], [{"bytes": None, "path": None}], "[]", "[null]")
        ),
    ],
    "coco_captions": [
        (
            {"file_name": "a.png", "image_id": 3, "caption": " A cat. "},
            [("user", "<a.png>"), ("assistant", "A cat.")],
        )
    ],
}

ASK, ANSWER = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}
SAY, REPLY = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}

BAD: dict[str, list[tuple[Mapping[str, Any], str]]] = {
    "llava": [
        ({"id": 1}, "no `conversations`; the row has `id`"),
        ({"conversations": "hello"}, "not a list"),
        ({"conversations": []}, "no answer"),
        ({"conversations": [ASK]}, "no answer"),
        ({"conversations": [ANSWER]}, "roles out of order"),
        ({"conversations": [ASK, ASK, ANSWER]}, "turn 2 is `user` where `assistant` belongs"),
        ({"conversations": [ASK, ANSWER, ASK]}, "last turn is the user's"),
        ({"conversations": [ASK, {"from": "gpt", "value": " \n"}]}, "empty answer (turn 2)"),
        ({"conversations": [{"from": "human", "value": ""}, ANSWER]}, "empty question (turn 1)"),
        ({"conversations": [{"from": "bing", "value": "Q"}, ANSWER]}, "unknown speaker `bing` in turn 1"),
        ({"conversations": [{"from": "human"}, ANSWER]}, "turn 1 is not"),
        ({"conversations": ["Q", ANSWER]}, "turn 1 is not"),
        ({"conversations": [ASK, {"from": "gpt", "value": "\ud800"}]}, "surrogate"),
        ({"conversations": [{"from": "human", "value": "<image>\n"}, ANSWER]}, "a marker and nothing else in turn 1"),
        (
            {"image": ["a", "b"], "conversations": [{"from": "human", "value": "<image>Q"}, ANSWER]},
            "1 <image> markers for 2 pictures",
        ),
        (
            {"image": "a", "conversations": [{"from": "human", "value": "<image><image>"}, ANSWER]},
            "2 <image> markers for 1 pictures",
        ),
        ({"image": "../a.png", "conversations": [ASK, ANSWER]}, "contains `..`"),
        ({"image": 5, "conversations": [ASK, ANSWER]}, "not int"),
    ],
    "messages": [
        ({"image": "a"}, "no `messages` or `prompt`"),
        ({"prompt": "Q"}, "`prompt` without `completion`"),
        ({"messages": "Q"}, "not a list"),
        ({"messages": [SAY]}, "no answer"),
        ({"messages": [{"role": "tool", "content": "Q"}, REPLY]}, "unknown role `tool`"),
        ({"messages": [SAY, {"role": "assistant", "content": None}]}, "message 2 is not"),
        ({"messages": [{"role": "user", "content": 5}, REPLY]}, "neither text nor a list"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}, REPLY]}, "neither text, image"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, REPLY]}, "more image parts than pictures"),
        (
            {"image": "a", "messages": [SAY, {"role": "assistant", "content": [{"type": "image"}]}]},
            "picture in an answer",
        ),
        (
            {"images": ["a", "b"], "messages": [{"role": "user", "content": [{"type": "image"}]}, REPLY]},
            "1 image parts for 2 pictures",
        ),
        (
            {"images": ["a", "b"], "messages": [{"role": "user", "content": "<image>"}, REPLY]},
            "1 <image> markers for 2 pictures",
        ),
        ({"image": "https://example.org/a.png", "messages": [SAY, REPLY]}, "is a URL"),
    ],
    "owl": [
        ({"task_type": "llava_sft"}, "no `text`"),
        ({"text": 5}, "not text"),
        ({"text": "S.\nHuman: hi"}, "no answer"),
        ({"text": "S.\nHuman: hi\nAI: "}, "empty answer"),
        ({"text": "S.\nAI: yo"}, "roles out of order"),
        ({"text": "S.\nHuman: <image>\nAI: yo"}, "a marker and nothing else in turn 2"),
        ({"text": "S.\nHuman: hi <image> <image>\nAI: yo", "image": ["a"]}, "2 <image> markers for 1 pictures"),
        ({"text": "S.\nHuman: hi\nAI: <image>", "image": ["a"]}, "outside a user turn"),
    ],
    "caption": [
        ({"text": "A"}, "no `image` or `images` or `file_name`"),
        ({"image": "a", "text": None}, "no `text` or `caption`"),
        ({"image": "a", "text": "  "}, "empty answer"),
        ({"image": "a", "text": 5}, "the caption is int"),
        ({"image": "", "text": "A"}, "no picture and no `instruction`"),
        ({"image": None, "text": "A", "instruction": float("nan")}, "no picture and no `instruction`"),
        ({"image": " ", "text": "A"}, "is empty"),
        ({"image": "/etc/passwd", "text": "A"}, "is absolute"),
    ],
}
BAD["coco_captions"] = [
    ({"file_name": "a.png", "caption": "A"}, "no `image_id`"),
    ({"file_name": "a.png", "image_id": 1, "caption": 5}, "the caption is int"),
]
GOLDEN |= preference_rows.GOLDEN | feedback_rows.GOLDEN | published_rows.GOLDEN
BAD |= preference_rows.BAD | feedback_rows.BAD | published_rows.BAD


def test_every_format_file_is_covered() -> None:
    assert NAMES == sorted(GOLDEN) == sorted(BAD)


@pytest.mark.parametrize("name", NAMES)
def test_the_example_reads_and_is_detected_as_its_own_format(name: str, images: ImageRoot) -> None:
    form = load_format(name)
    assert isinstance(form, Format)
    assert form.doc
    assert form.read(form.example, images)[-1].role == "assistant"
    assert detect_format("rows.jsonl", [form.example]) == name


@pytest.mark.parametrize(("name", "row", "turns"), [(n, r, t) for n, rows in GOLDEN.items() for r, t in rows])
def test_golden_rows_give_golden_turns(
    name: str, row: Mapping[str, Any], turns: list[tuple[Any, ...]], images: ImageRoot
) -> None:
    assert told(load_format(name).read(row, images)) == turns
    assert detect_format("rows.jsonl", [row]) == name


@pytest.mark.parametrize(("name", "row", "turns"), [(n, r, t) for n, rows in GOLDEN.items() for r, t in rows])
def test_pictures_of_a_row_come_from_the_media_keys_or_stand_in_its_text(
    name: str, row: Mapping[str, Any], turns: list[tuple[Any, ...]], images: ImageRoot
) -> None:
    """A row without its media keys shows nothing, unless messages name their pictures themselves."""
    form = load_format(name)
    without = {key: value for key, value in row.items() if key not in form.media}
    assert all(isinstance(row.get(key), (str, list, tuple, type(None))) for key in form.media)
    try:
        shown = [part for turn in form.read(without, images) for part in turn.parts if isinstance(part, ImageRef)]
    except BadRow:
        return
    assert not shown or without == dict(row)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_ends_with_its_question_is_read_up_to_it(name: str, images: ImageRoot) -> None:
    """A format that can be a prompt only gives the same question with its own answer and without one."""
    form = load_format(name)
    whole = form.read(form.answered(form.example), images)[: -form.answers]
    assert whole == form.read(form.example, images)[: -form.answers]
    assert whole[-1].role == "user"
    for key, value in form.example.items():
        turns = value[:-1] if isinstance(value, (list, tuple)) and key in ("messages", "conversations") else None
        if turns and form.kind != "preference":
            assert form.read(form.answered({**form.example, key: turns}), images)[: -form.answers] == whole


def test_two_formats_of_one_rank_are_an_error_not_a_guess() -> None:
    row = {**load_format("llava").example, **load_format("messages").example}
    with pytest.raises(DataError, match="fit the formats llava and messages alike") as caught:
        detect_format("rows.jsonl", [row])
    assert caught.value.problems[0].code == "D011"


@pytest.mark.parametrize("name", NAMES)
def test_no_key_of_a_format_is_known_outside_the_formats(name: str) -> None:
    """What `required`, `verdict` and `media` name is read by the format alone."""
    form = load_format(name)
    own = {key for keys in (*form.required, form.verdict, *form.media) for key in keys.split("|") if key} - WORDS
    assert not [
        (path.name, key)
        for path in NEUTRAL
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and (key := node.value) in own
    ]


@pytest.mark.parametrize(("name", "row", "reason"), [(n, r, why) for n, rows in BAD.items() for r, why in rows])
def test_bad_rows_say_why_and_show_a_correct_one(
    name: str, row: Mapping[str, Any], reason: str, images: ImageRoot
) -> None:
    with pytest.raises(BadRow) as caught:
        load_format(name).read(row, images)
    assert reason in caught.value.reason
    assert caught.value.help


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_hugging_face_data_sets_are_taken_encoded(name: str, images: ImageRoot) -> None:
    form, drawn = load_format(name), Image.new("CMYK", (4, 6))
    column = "images" if "images" in form.example else "image"
    for value in (drawn, {"bytes": b"encoded", "path": None}, {"bytes": b"encoded", "path": "/elsewhere.png"}):
        turns = form.read({**form.example, column: [value] if column == "images" or name == "owl" else value}, images)
        (ref,) = (part for turn in turns for part in turn.parts if isinstance(part, ImageRef))
        assert ref.path is None
        assert ref.data
