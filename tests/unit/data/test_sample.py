"""The in-memory row: pictures can be swapped or left out without touching the conversation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qlmm.data.sample import ImageRef, Origin, Preference, Sample, Turn

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


PAIR = Preference(ROW.turns[:1], "Both.", "None.", ROW.origin)


def test_a_preference_is_two_conversations_with_one_prompt() -> None:
    assert PAIR.side("chosen") == ROW
    assert PAIR.side("rejected").turns == (*ROW.turns[:1], Turn("assistant", ("None.",)))
    assert PAIR.turns == ROW.turns
    assert PAIR.images == ROW.images
    assert PAIR.content != replace(PAIR, rejected="Neither.").content


def test_pictures_of_a_preference_are_swapped_and_left_out_on_both_sides() -> None:
    assert PAIR.with_images((C, A)).side("rejected").images == (C, A)
    assert PAIR.without_images().side("rejected").images == ()
    assert PAIR.without_images().rejected == "None."
    with pytest.raises(ValueError, match="1 pictures for 2 places"):
        PAIR.with_images((A,))


def test_the_oldest_exchange_goes_and_leaves_its_pictures() -> None:
    system, more = Turn("system", ("S",)), (Turn("user", (C, "And?")), Turn("assistant", ("Yes.",)))
    long = Sample((system, *ROW.turns, *more), ROW.origin)
    last = Turn("user", (A, B, C, "And?"))
    shorter = long.without_oldest()
    assert shorter is not None
    assert shorter.turns == (system, last, more[1])
    assert shorter.without_oldest() is None
    pair = Preference(long.turns[:-1], "Yes.", "No.", ROW.origin).without_oldest()
    assert pair == Preference((system, last), "Yes.", "No.", ROW.origin)
    assert PAIR.without_oldest() is None
