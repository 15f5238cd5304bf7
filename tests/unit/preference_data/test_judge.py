"""Which tokens are a yes and a no; statements are the judge's, or else the answer's own sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from qlmm.core.errors import ModelError
from qlmm.data.sample import ImageRef
from qlmm.preference_data import judge as module
from qlmm.preference_data.judge import Judge, Words
from tests.talking import Loaded

PICTURES = (ImageRef(data=b"x"),)


class Pieces:
    """A tokenizer of whole pieces; longer texts fall apart into letters."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = [*pieces, *(letter for letter in " yYeEsSnNoO" if letter not in pieces)]

    def get_vocab(self) -> Mapping[str, int]:
        return {piece.replace(" ", "Ġ"): number for number, piece in enumerate(self.pieces)}

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[one] for one in ids)

    def __call__(self, text: str, **_: Any) -> Mapping[str, list[int]]:
        whole = [text] if text in self.pieces else list(text)
        return {"input_ids": [self.pieces.index(piece) for piece in whole]}


def spelt(tokenizer: Pieces, ids: tuple[int, ...]) -> set[str]:
    return {tokenizer.pieces[one] for one in ids}


def test_every_spelling_that_is_one_token_counts_and_nothing_else() -> None:
    tokenizer = Pieces("yes", " Yes", "Yes", " no", "No", "yesterday", "eyes", "Nono", " piano", "YES")
    words = Words.of(tokenizer)
    assert spelt(tokenizer, words.yes) == {"yes", " Yes", "Yes"}
    assert spelt(tokenizer, words.no) == {" no", "No"}


def test_first_tokens_stand_in_where_a_word_is_no_single_token() -> None:
    tokenizer = Pieces("yes")
    words = Words.of(tokenizer)
    assert spelt(tokenizer, words.yes) == {"yes", "Y"}
    assert spelt(tokenizer, words.no) == {"n", "N"}


def test_words_that_begin_alike_are_refused() -> None:
    class OneByte(Pieces):
        def __call__(self, text: str, **_: Any) -> Mapping[str, list[int]]:
            return {"input_ids": [0]}

    with pytest.raises(ModelError) as caught:
        Words.of(OneByte())
    assert caught.value.problems[0].code == "J006"


def test_a_verdict_adds_up_the_spellings() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    assert Words((0, 3), (1,)).verdict(logits) == pytest.approx((0.5, 0.2))
    assert math.isclose(sum(Words((0, 1), (2, 3)).verdict(torch.randn(4))), 1.0, rel_tol=1e-5)


@pytest.fixture
def judge() -> Judge:
    loaded: Any = Loaded()
    return Judge(loaded, Words((0,), (1,)), needs_pictures=False)


def says(monkeypatch: pytest.MonkeyPatch, text: str) -> list[Any]:
    asked: list[Any] = []
    monkeypatch.setattr(module, "answer", lambda model, encoder, sample, longest: asked.append(sample) or text)
    return asked


def test_the_judges_statements_are_taken(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = says(monkeypatch, "Here:\n1. There is a cat.\n2. The cat is red.\n3. Dogs bark.")
    split = judge.split("What?", "A red cat.", PICTURES, longest=9)
    assert split == module.Split(("There is a cat.", "The cat is red."), "judge")
    assert "What?" in asked[0].turns[0].text
    assert "A red cat." in asked[0].turns[0].text
    assert not asked[0].images


def test_without_any_the_answers_sentences_are_judged(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, "I am sorry.")
    assert judge.split("What?", "A cat. It sits.", (), longest=9) == module.Split(("A cat.", "It sits."), "sentences")


def test_an_answer_without_a_word_is_not_even_asked_about(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = says(monkeypatch, "A cat.")
    assert judge.split("What?", " ...", (), longest=9).statements == ()
    assert not asked


def test_a_judge_that_needs_pictures_is_shown_them(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: Any = Loaded()
    seeing = Judge(loaded, Words((0,), (1,)), needs_pictures=True)
    asked = says(monkeypatch, "")
    seeing.split("What?", "A cat.", PICTURES, longest=9)
    assert asked[0].images == PICTURES


def test_more_questions_than_fit_a_batch_keep_their_order(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def following(self: Judge, rows: Any) -> torch.Tensor:
        sizes.append(len(rows))
        return torch.tensor([[float(row.turns[0].text), 0.0] for row in rows])

    monkeypatch.setattr(Judge, "_next", following)
    found = judge.verdicts([str(number) for number in range(20)], PICTURES)
    assert sizes == [8, 8, 4]
    assert len(found) == 20
    assert [yes for yes, _ in found] == sorted(yes for yes, _ in found)
