"""What holds for rows of every format: pictures by any usual name, the system prompt, masks, unread keys, markers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from qlmm.core import naming
from qlmm.data.contract import Format
from qlmm.data.errors import BadRow
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.reading.dataset import detect_format, load_format
from qlmm.data.sample import ImageRef, Turn
from qlmm.data.tracked import Tracked

NAMES = naming.names("qlmm.data.formats")
BOTH = ("llava", "messages")
ALIASES = ("img", "imgs", "image_path", "image_paths", "image_file", "image_url", "picture", "pictures", "file_name")


def parts(turns: tuple[Turn, ...]) -> list[tuple[Any, ...]]:
    return [(t.role, *(f"<{p.name}>" if isinstance(p, ImageRef) else p for p in t.parts)) for t in turns]


def read(row: Mapping[str, Any], name: str = "") -> tuple[Turn, ...]:
    return load_format(name or detect_format("rows.jsonl", [row])).read(row, ImageRoot("."))


def said(form: str, *texts: str, **keys: Any) -> dict[str, Any]:
    """A row of questions and answers; ``first`` are further keys of its first answer."""
    first = keys.pop("first", {})
    column, speaker, text, names = (
        ("conversations", "from", "value", ("human", "gpt"))
        if form == "llava"
        else ("messages", "role", "content", ("user", "assistant"))
    )
    turns: list[dict[str, Any]] = [{speaker: names[place % 2], text: one} for place, one in enumerate(texts)]
    turns[1] |= first
    return {column: turns, **keys}


def shown(row: Mapping[str, Any]) -> list[str]:
    return [part.name for turn in read(row) for part in turn.parts if isinstance(part, ImageRef)]


@pytest.mark.parametrize("name", NAMES)
def test_every_key_that_a_format_does_not_read_is_named(name: str) -> None:
    row = Tracked({**load_format(name).example, "idx": 7, "note": None, "tags": [], "score": float("nan")})
    load_format(name).read(row, ImageRoot("."))
    assert "idx" in set(row.unread())
    assert not {"note", "tags", "score"} & set(row.unread())


@pytest.mark.parametrize("name", NAMES)
def test_no_key_of_an_example_is_unread_but_its_number(name: str) -> None:
    row = Tracked(load_format(name).example)
    load_format(name).read(row, ImageRoot("."))
    assert set(row.unread()) <= {"id", "task_type"}


def test_unread_keys_of_turns_and_parts_are_named_with_their_place() -> None:
    row = Tracked(
        {
            "messages": [
                {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "Q", "cache": 1}]},
                {"role": "assistant", "content": "A"},
            ]
        }
    )
    read(row)
    assert sorted(row.unread()) == ["messages[].content[].cache", "messages[].name"]


def test_a_prompt_that_both_answers_repeat_is_read_once() -> None:
    turns = [{"role": "user", "content": "Q"}]
    sides = {side: [*turns, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    row = Tracked(sides)
    read(row, "preference")
    assert not list(row.unread())


@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize("key", ["image", "images", *ALIASES])
def test_pictures_are_read_under_every_usual_name(form: str, key: str) -> None:
    value = ["a.png"] if key.endswith("s") else "a.png"
    assert shown(said(form, "Q", "A", **{key: value})) == ["a.png"]
    assert shown({"prompt": "Q", "chosen": "1", "rejected": "2", key: value}) == ["a.png"]
    assert shown({"text": "A cat.", key: value}) == ["a.png"]


@pytest.mark.parametrize("form", BOTH)
def test_two_columns_of_pictures_must_agree(form: str) -> None:
    assert shown(said(form, "Q", "A", image="a.png", images=["a.png"])) == ["a.png"]
    assert shown(said(form, "Q", "A", image="a.png", image_path="https://example.org/b.png")) == ["a.png"]
    with pytest.raises(BadRow, match="`image` and `images` name different pictures"):
        read(said(form, "Q", "A", image="a.png", images=["b.png"]))


@pytest.mark.parametrize("form", BOTH)
def test_videos_are_read_under_both_names(form: str) -> None:
    frames = ["a.png", "b.png"]
    assert shown(said(form, "<video>Q", "A", video=frames)) == frames
    assert shown(said(form, "<video>Q", "A", videos=[frames])) == frames
    assert shown(said(form, "<image>\nQ", "A", video=frames)) == frames  # LLaVA-Video


@pytest.mark.parametrize(
    "row", [said("llava", "Q", "A"), said("messages", "Q", "A"), {"prompt": "Q", "completion": "A"}]
)
@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_column_is_the_system_turn(row: dict[str, Any], key: str) -> None:
    assert parts(read({**row, key: "S"})) == [("system", "S"), ("user", "Q"), ("assistant", "A")]
    assert parts(read({**row, key: ""})) == [("user", "Q"), ("assistant", "A")]
    with pytest.raises(BadRow, match="is not text"):
        read({**row, key: ["S"]})


def test_a_system_column_beside_a_system_turn_must_say_the_same() -> None:
    row = said("messages", "Q", "A")
    row["messages"] = [{"role": "system", "content": "S"}, *row["messages"]]
    assert [turn.role for turn in read({**row, "system": "S"})] == ["system", "user", "assistant"]
    with pytest.raises(BadRow, match="`system` is another text"):
        read({**row, "system": "T"})


@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize("key", ["loss", "loss_scale", "train", "training", "trainable", "weight"])
@pytest.mark.parametrize(("value", "learned"), [(False, False), (0, False), (0.0, False), (True, True), (1, True)])
def test_a_turn_is_learned_as_its_keys_say(form: str, key: str, value: object, learned: bool) -> None:
    turns = read(said(form, "Q", "A", "R", "B", first={key: value}))
    assert [turn.learned for turn in turns] == [True, learned, True, True]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"weight": 0.5}, "`weight` of message 2 is 0.5"),
        ({"loss": "no"}, "`loss` of message 2 is 'no'"),
        ({"loss": True, "train": False}, "`loss` and `train` of message 2 contradict"),
        ({"train_detail": [{"begin": 0}]}, "`messages[].train_detail` is not read"),
        ({"tool_calls": [{"id": "c"}]}, "`messages[].tool_calls` is not read"),
        ({"reasoning_content": "Hm."}, "`messages[].reasoning_content` is not read"),
    ],
)
def test_keys_of_a_turn_that_cannot_be_followed_are_refused(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        read(said("messages", "Q", "A", "R", "B", first=keys))
    assert reason in caught.value.reason
    assert caught.value.help


def test_questions_are_never_learned() -> None:
    row = said("messages", "Q", "A")
    row["messages"][0]["loss"] = True
    with pytest.raises(BadRow, match="`loss` of message 1 asks to learn a turn of `user`"):
        read(row)


@pytest.mark.parametrize("form", BOTH)
def test_mask_history_leaves_the_last_answer(form: str) -> None:
    turns = read(said(form, "Q", "A", "R", "B", mask_history=True))
    assert [turn.learned for turn in turns if turn.role == "assistant"] == [False, True]
    assert all(turn.learned for turn in read(said(form, "Q", "A", "R", "B", mask_history=False)))


def test_a_row_without_anything_to_learn_is_refused() -> None:
    with pytest.raises(BadRow, match="no answer is learned"):
        read(said("messages", "Q", "A", first={"loss": False}))


@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize(
    "key",
    ["audios", "audio", "objects", "tools", "rejected_images", "history"],
)
def test_known_keys_that_no_format_reads_are_refused_by_name(form: str, key: str) -> None:
    with pytest.raises(BadRow, match=f"`{key}` is not read"):
        read(said(form, "Q", "A", **{key: ["x"]}))
    read(said(form, "Q", "A", **{key: []}))


def test_pictures_that_a_format_does_not_read_are_refused_unless_others_are_shown() -> None:
    read({"text": "A cat.", "image": "a.png", "image_path": "b.png"})
    example = {"asked": "Q", "answer": "A"}
    blind = Format("", example, ("asked",), lambda row: True, lambda row, images: [
        Turn("user", (str(row["asked"]),)), Turn("assistant", (str(row["answer"]),))
    ])  # fmt: skip
    assert blind.read(example, ImageRoot("."))
    with pytest.raises(BadRow, match="`imgs` is not read by this format"):
        blind.read({**example, "imgs": ["a.png"]}, ImageRoot("."))
