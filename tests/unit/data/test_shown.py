"""Where a conversation shows its row's pictures: one rule, whichever format the row is in."""

from __future__ import annotations

from typing import Any

import pytest

from qlmm.data.errors import BadRow
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.reading.dataset import detect_format, load_format
from qlmm.data.sample import ImageRef

FORMS = ("llava", "messages", "owl", "preference", "rlaif_v", "sharegpt_ranking", "feedback", "sharegpt_feedback")
GPT = {"from": "gpt", "value": "A"}


def asked(form: str, question: str, answer: str = "A") -> dict[str, Any]:
    human = [{"from": "human", "value": question}]
    return {
        "llava": {"conversations": [*human, {"from": "gpt", "value": answer}]},
        "messages": {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]},
        "owl": {"text": f"Human: {question}\nAI: {answer}", "task_type": "sft"},
        "preference": {"prompt": question, "chosen": answer, "rejected": "B"},
        "rlaif_v": {"question": question, "chosen": answer, "rejected": "B"},
        "sharegpt_ranking": {
            "conversations": human,
            "chosen": {**GPT, "value": answer},
            "rejected": {**GPT, "value": "B"},
        },
        "feedback": {"prompt": question, "completion": answer, "label": True},
        "sharegpt_feedback": {"conversations": [*human, {**GPT, "value": answer}], "kto_tag": True},
    }[form]


def told(row: dict[str, Any]) -> list[str]:
    turns = load_format(detect_format("rows.jsonl", [row])).read(row, ImageRoot("."))
    (user,) = (turn for turn in turns if turn.role == "user")
    return [f"<{part.name}>" if isinstance(part, ImageRef) else part for part in user.parts]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("question", "pictures", "user"),
    [
        ("Q", ["1", "2"], ["<1>", "<2>", "Q"]),
        ("<image>\nQ", ["1"], ["<1>", "Q"]),
        ("Q\n<image>", ["1"], ["Q", "<1>"]),
        ("<image> Compare <image> please", ["1", "2"], ["<1>", " Compare ", "<2>", " please"]),
        ("Explain <image>.", [], ["Explain <image>."]),
        ("Explain <image> and <image>.", None, ["Explain <image> and <image>."]),
    ],
)
def test_markers_are_places_where_there_are_pictures(
    form: str, question: str, pictures: list[str] | None, user: list[str]
) -> None:
    found = told({**asked(form, question), "images": pictures})
    assert [part.strip() for part in found] == [part.strip() for part in user]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("question", "answer", "pictures", "reason"),
    [
        ("<image>Q", "A", ["1", "2"], "1 <image> markers for 2 pictures"),
        ("<image><image>Q", "A", ["1"], "2 <image> markers for 1 pictures"),
        ("Q", "<image>", ["1"], "<image> outside a user turn"),
        ("<image>\n", "A", [], "a marker and nothing else"),
    ],
)
def test_markers_that_do_not_fit_are_refused(
    form: str, question: str, answer: str, pictures: list[str], reason: str
) -> None:
    with pytest.raises(BadRow, match=reason):
        told({**asked(form, question, answer), "images": pictures})


def parted(*content: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "A"}], **columns}


IMAGE, FIRST, SECOND = ({"type": "image", **named} for named in ({}, {"image": "1"}, {"path": "2"}))


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


@pytest.mark.parametrize(
    ("row", "user"),
    [
        (parted(IMAGE, text("<image>\nQ"), images=["1"]), ["<1>", "Q"]),
        (parted(text("A <image> or <image>?"), IMAGE, IMAGE, images=["1", "2"]), ["A ", "<1>", " or ", "<2>", "?"]),
        (parted(FIRST, text("<image>Q")), ["<1>", "Q"]),
        (parted(FIRST, text("Q"), images=["1"]), ["<1>", "Q"]),
        (parted(FIRST, SECOND, text("Q"), images=["2", "1"]), ["<1>", "<2>", "Q"]),
        (parted(FIRST, FIRST, text("Q"), image="1"), ["<1>", "<1>", "Q"]),
        (parted(FIRST, text("<image>Q"), images=["1"]), ["<1>", "Q"]),
        (parted({"type": "image_url", "image_url": {"url": "1"}}, text("Q"), images=["1"]), ["<1>", "Q"]),
        (parted({"type": "video", "video": ["1", "2"]}, text("<video>Q"), videos=[["1", "2"]]), ["<1>", "<2>", "Q"]),
        (parted(SECOND, text("Q"), images=["1"]), ["<1>", "<2>", "Q"]),
    ],
)
def test_a_picture_that_is_named_twice_is_shown_once(row: dict[str, Any], user: list[str]) -> None:
    assert [part for part in told(row) if part] == user


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (parted(FIRST, text("Q"), images=["1", "2"]), "1 of 2 pictures stand in a part, too"),
        (parted(FIRST, text("<image><image>Q")), "2 <image> markers for 1 pictures in one turn"),
        (parted(IMAGE, text("Q"), images=["1", "2"]), "1 image parts for 2 pictures"),
        (parted(IMAGE, IMAGE, text("Q"), images=["1"]), "more image parts than pictures"),
    ],
)
def test_parts_and_columns_that_contradict_each_other_are_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        told(row)
