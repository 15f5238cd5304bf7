"""Statements come from the answer, silence wins nothing, identical answers form no pair, the first best ratio wins."""

from __future__ import annotations

import math

import pytest

from qlmm.core.errors import UsageError
from qlmm.preference_data.pairing import (
    Settings,
    candidates,
    chosen_pairs,
    length_filter,
    refuted,
    sentences,
    statements,
    words,
)


def test_numbering_and_bullets_are_no_part_of_a_statement() -> None:
    said = "1. A cat sits.\n2) The cat is red.\n- A red mat.\n(3) A mat lies.\n• cat"
    answer = "A red cat sits on a mat."
    assert statements(said, answer) == ["A cat sits.", "The cat is red.", "A red mat.", "A mat lies.", "cat"]


@pytest.mark.parametrize("line", ["Sure, here they are:", "A dog barks.", "There is one.", "", "---", "3."])
def test_a_line_that_shares_no_content_word_is_no_statement(line: str) -> None:
    assert statements(f"{line}\nThe cat is red.", "There is one red cat.") == ["The cat is red."]


def test_a_repeated_statement_counts_once() -> None:
    assert statements("A cat.\n- A cat.\nA cat.", "a cat") == ["A cat."]


def test_letters_are_words_where_a_script_has_no_spaces() -> None:
    assert statements("有一只猫\n狗在叫", "一只猫坐着") == ["有一只猫"]
    assert sentences("一只猫。两只鸟！") == ["一只猫。", "两只鸟！"]


def test_sentences_are_whole_and_hold_a_word() -> None:
    assert sentences("A cat. It is 3.5 kg!  ...\n\nA cat.") == ["A cat.", "It is 3.5 kg!"]
    assert sentences("...") == []
    assert sentences("") == []


@pytest.mark.parametrize(("verdict", "denied"), [((0.5, 0.5), True), ((0.5, 0.499), False), ((0.0, 0.0), True)])
def test_a_tie_counts_as_no(verdict: tuple[float, float], denied: bool) -> None:
    assert refuted(verdict) is denied


def test_identical_texts_are_one_answer() -> None:
    assert candidates(["a", "b", "a", "b"], [0, -1, 0, -1]) == [(0, 1)]


def test_an_answer_that_says_nothing_is_never_chosen_or_rejected() -> None:
    assert candidates(["", "a", "b"], [None, 0, -2]) == [(1, 2)]


def test_equal_scores_form_no_pair() -> None:
    assert candidates(["a", "b"], [-1, -1]) == []


def test_at_most_so_many_pairs_are_drawn_by_the_seed() -> None:
    pairs = [(0, place) for place in range(1, 9)]
    drawn = chosen_pairs(pairs, 2, "0:7")
    assert drawn == chosen_pairs(pairs, 2, "0:7")
    assert len(drawn) == 2
    assert set(drawn) < set(pairs)
    assert len({tuple(chosen_pairs(pairs, 2, f"{seed}:7")) for seed in range(20)}) > 1
    assert chosen_pairs(pairs[:2], 2, "0:7") == pairs[:2]


def test_the_first_of_equally_good_ratios_is_taken() -> None:
    assert length_filter([(10, 10)]).ratio == 0
    assert length_filter([(5, 10), (5, 10)]).ratio == 0.5


def test_nothing_is_kept_where_every_chosen_answer_is_far_too_short() -> None:
    filtered = length_filter([(1, 1000)])
    assert (filtered.ratio, filtered.kept) == (None, ())
    assert length_filter([]).ratio is None


def test_length_is_words() -> None:
    assert words(" two   words\n") == 2


def test_the_smallest_settings_that_give_a_pair_are_taken() -> None:
    Settings(answers=2, temperature=1e-3, per_prompt=1, max_new_tokens=1, limit=1).check()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"answers": 1}, "--answers"),
        ({"temperature": 0.0}, "--temperature"),
        ({"temperature": -1.0}, "--temperature"),
        ({"temperature": math.nan}, "--temperature"),
        ({"temperature": math.inf}, "--temperature"),
        ({"per_prompt": 0}, "--per-prompt"),
        ({"max_new_tokens": 0}, "--max-new-tokens"),
        ({"limit": 0}, "--limit"),
    ],
)
def test_settings_that_can_give_no_pair_are_refused(wrong: dict[str, float], named: str) -> None:
    Settings().check()
    with pytest.raises(UsageError, match=named) as caught:
        Settings(**wrong).check()  # type: ignore[arg-type]  # one setting at a time
    assert caught.value.problems[0].code == "J001"
