"""The in-memory row: pictures can be swapped or left out without touching the conversation."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlmm.data.sample import ImageRef, Origin, Sample, Turn

A, B, C = (ImageRef(path=Path(f"{name}.png")) for name in "abc")
ROW = Sample((Turn("user", (A, "Compare", B)), Turn("assistant", ("Both.",))), Origin("rows.jsonl", 3))


def test_pictures_are_listed_in_the_order_of_their_places() -> None:
    assert ROW.images == (A, B)
    assert ROW.turns[0].text == "Compare"
    assert str(ROW.origin) == "rows.jsonl:3"
    assert (A.name, ImageRef(data=b"abc").name) == ("a.png", "<3 bytes>")


def test_pictures_are_swapped_in_place() -> None:
    swapped = ROW.with_images((C, A))
    assert swapped.turns[0].parts == (C, "Compare", A)
    assert swapped.turns[1] == ROW.turns[1]
    with pytest.raises(ValueError, match="1 pictures for 2 places"):
        ROW.with_images((A,))


def test_pictures_are_left_out() -> None:
    assert ROW.without_images().images == ()
    assert ROW.without_images().turns[0].text == "Compare"


def test_messages_are_those_of_chat_templates() -> None:
    assert ROW.messages(["pixels a", "pixels b"])[0]["content"] == [
        {"type": "image", "image": "pixels a"},
        {"type": "text", "text": "Compare"},
        {"type": "image", "image": "pixels b"},
    ]
    assert ROW.messages()[0]["content"][0] == {"type": "image"}
