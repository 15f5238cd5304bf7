"""An error says what it is about once, and can be said again in the terms of another option."""

from __future__ import annotations

from qlmm.core.errors import Problem, Unavailable, UsageError


def test_the_key_stands_before_the_sentence_and_can_be_another_options() -> None:
    refused = Unavailable.one("M003", "llama is not a model", key="base.model", help="check the spelling")
    assert str(refused) == "error[M003]: base.model: llama is not a model\nhelp: check the spelling"
    other = refused.about("--judge", "name a model")
    assert type(other) is Unavailable
    assert str(other) == "error[M003]: --judge: llama is not a model\nhelp: name a model"
    assert (refused.text, other.text) == ("base.model: llama is not a model", "--judge: llama is not a model")


def test_an_error_that_says_something_else_keeps_its_further_facts() -> None:
    class Found(UsageError):
        def __init__(self, found: str) -> None:
            super().__init__([Problem("D010", f"these are {found}")])
            self.found = found

    other = Found("pairs").with_problems([Problem("D010", "others")])
    assert (type(other), other.found, str(other)) == (Found, "pairs", "error[D010]: others")
