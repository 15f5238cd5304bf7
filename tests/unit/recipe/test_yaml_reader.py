"""YAML in a recipe means what YAML 1.2 says, and nothing that could surprise."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlmm.core.errors import RecipeError
from qlmm.recipe.yaml_reader import MAX_DEPTH, MAX_NODES, dump, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E4", 1e4),
        ("2.5e+3", 2500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("+3", 3),
        ("0123", 123),
        ("0o17", 15),
        ("0x1F", 31),
        ("3.10", 3.1),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-31", "2024-01-31"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("tRUE", "tRUE"),
        ("null", None),
        ("~", None),
        ("", None),
        ("=", "="),
        ("<<", "<<"),
        ("0b11", "0b11"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("'1e-4'", "1e-4"),
        ('"true"', "true"),
        ("a # comment", "a"),
        ("[1, no, ~]", [1, "no", None]),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    document = parse(f"key: {text}\n", "r.yaml")
    found = document.data["key"]
    assert (found, type(found), document.problems) == (value, type(value), [])


@pytest.mark.parametrize(
    ("text", "code", "line", "column"),
    [
        ("a: 1\nb: 2\na: 3\n", "R003", 3, 1),
        ("a: &x 1\nb: 2\n", "R004", 1, 4),
        ("a: 1\nb: *x\n", "R004", 2, 4),
        ("a: !!python/object/apply:os.system [x]\n", "R005", 1, 4),
        ("a: !!str 1\n", "R005", 1, 4),
        ("a: ! 1\n", "R005", 1, 4),
        ("a: .inf\n", "R013", 1, 4),
        ("a: .nan\n", "R013", 1, 4),
        ("a: 1e999\n", "R013", 1, 4),
        ("a: 9223372036854775808\n", "R013", 1, 4),
        (f"a: {'9' * 5000}\n", "R013", 1, 4),
        ('a: "\\0"\n', "R013", 1, 4),
        ('a: "\\ud800"\n', "R013", 1, 4),
        ("? [a]\n: 1\n", "R002", 1, 3),
    ],
)
def test_a_fault_is_reported_where_it_stands(text: str, code: str, line: int, column: int) -> None:
    (problem,) = parse(text, "r.yaml").problems
    assert problem.where is not None
    assert (problem.code, problem.where.line, problem.where.column) == (code, line, column)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("a: [1, 2\nb: 3\n", 2, 2),
        ("a: 1\n\tb: 2\n", 2, 1),
        ("a: 1\n---\nb: 2\n", 2, 1),
        ("a: b: c\n", 1, 5),
        ("a: 'open\n", 2, 1),
        ("a: @x\n", 1, 4),
        ("a: \x07\n", 1, 4),
        ("a: x\x1b[31m\n", 1, 5),
        ('a: "\\UFFFFFFFF"\n', 1, 1),
        ("a: " + "[" * 3000, 1, 3 + MAX_DEPTH),
        ("a: [" + "1," * MAX_NODES + "1]", 1, None),
        ("- &a [x]\n" * 2 + "\t", 3, 1),
    ],
)
def test_text_that_cannot_be_read_to_its_end_is_refused(text: str, line: int, column: int | None) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(text, "r.yaml")
    problem = caught.value.problems[-1]
    assert problem.where is not None
    assert (problem.code, problem.where.line) == ("R002", line)
    assert column is None or problem.where.column == column


def test_an_alias_bomb_is_refused_without_being_expanded() -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))]
    problems = parse("\n".join(lines), "r.yaml").problems
    assert {problem.code for problem in problems} == {"R004"}


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_places_do_not_depend_on_line_ends(ends: str) -> None:
    document = parse(ends.join(["a:", "  b: 1", "  c: [x, yy]"]), "r.yaml")
    where = document.places["a", "c", 1].value
    assert (where.line, where.column, where.width, where.excerpt) == (3, 10, 2, "  c: [x, yy]")
    key = document.places["a", "b"].key
    assert key is not None
    assert (key.line, key.column, key.width) == (2, 3, 1)


def test_other_line_ends_inside_a_value_do_not_shift_lines() -> None:
    document = parse('a: "x\u2028y"\nb: 1\n', "r.yaml")
    assert document.places[("b",)].value.line == 2


def test_what_a_terminal_would_act_on_is_not_quoted() -> None:
    with pytest.raises(RecipeError) as caught:
        parse("a: x\x1b[31mred\n", "r.yaml")
    assert "\x1b" not in str(caught.value)


def test_an_overlong_line_is_not_quoted() -> None:
    with pytest.raises(RecipeError) as caught:
        parse("a: " + "x" * 5000 + ": y\n", "r.yaml")
    assert len(str(caught.value)) < 500


def test_an_overlong_or_odd_key_is_not_quoted_in_full() -> None:
    text = f"? '{'k' * 5000}'\n: 1\n" * 2 + '"\\e[31m": 1\n' * 2
    problems = parse(text, "r.yaml").problems
    assert [problem.code for problem in problems] == ["R003", "R003"]
    assert all(len(problem.message) < 100 and "\x1b" not in problem.message for problem in problems)


def test_an_empty_document_is_empty_data() -> None:
    assert parse("# nothing\n", "r.yaml").data is None


WORDS = st.text(alphabet=st.characters(blacklist_categories=["Cs", "Cc"]), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False)
DATA = st.recursive(
    SCALARS | WORDS | st.sampled_from(["no", "1e-4", "0123", "12:30", "~", "", "0o7", "true", "- a", "a: b", "#"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(WORDS, DATA, max_size=5))
def test_what_is_written_is_read_back(data: dict[str, Any]) -> None:
    document = parse(dump(data), "r.yaml")
    assert (document.data, document.problems) == (data, [])


YAMLISH = st.text(
    alphabet=st.sampled_from(list("ab01 \n\t:-?[]{},&*!|>'\"%@`#.~<=e_\\xuU\ufeff\u2028\x00\x1b")), max_size=60
)


@given(st.text(max_size=200) | YAMLISH)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        document = parse(text, "r.yaml")
    except RecipeError as error:
        refused = error
    else:
        assert () in document.places
        return
    assert refused.problems
    assert str(refused)
