"""A recipe is read strictly, all its problems are told at once, and only ``RecipeError`` ever leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlmm.core.errors import RecipeError
from qlmm.recipe.load import MAX_BYTES, as_yaml, load_recipe, parse_recipe

SECRET = "hf_" + "aB3dE5gH7j" * 3

SPEC = """\
error[R012]: unknown key `rank`
  --> recipes/owl_lora.yaml:8:3
  |
8 |   rank: 8
  |   ^^^^ not a key of adapter
help: did you mean `r`?  keys: variant, language, connector, vision, r, alpha, dropout, targets, start_from"""

EVERYTHING = """\
error[R014]: `output` is missing
  --> all.yaml
help: Where things go.

error[R015]: `model` and `vision`/`language`/`connector` exclude each other: name one kind of base
  --> all.yaml:2:1
  |
2 | base:
  | ^^^^

error[R013]: `adapter.language` should be lora or frozen
  --> all.yaml:6:13
  |
6 |   language: lroa
  |             ^^^^
help: did you mean `lora`?

error[R013]: `adapter.targets` should be a list
  --> all.yaml:7:12
  |
7 |   targets: q_proj
  |            ^^^^^^ this is text
help: a list of one is written in brackets: [value]

error[R012]: unknown key `sorces`
  --> all.yaml:9:3
  |
9 |   sorces: [{path: x}]
  |   ^^^^^^ not a key of data
help: did you mean `sources`?  keys: sources, text_ratio, max_length, overlong, max_bad_rows, max_pixels, \
min_pixels, max_tiles, max_frames, thinking

error[R013]: `data.max_length` should be greater than 0
  --> all.yaml:10:15
   |
10 |   max_length: 0
   |               ^

error[R003]: key `seed` is given twice
  --> all.yaml:13:3
   |
13 |   seed: 2
   |   ^^^^
help: first given in line 12

error[R013]: `training.gradient_checkpointing` should be true or false
  --> all.yaml:14:27
   |
14 |   gradient_checkpointing: yes
   |                           ^^^ this is text
help: write true or false, without quotes

error[R013]: `training.steps` should be a whole number
  --> command line:1:16
  |
1 | training.steps=2.5
  |                ^^^ this is a number with a decimal point or exponent"""


def problems_of(text: str, *overrides: str) -> list[tuple[str, int | None, int | None]]:
    """Code, line and column of every problem."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml", overrides)
    wheres = [(problem.code, problem.where) for problem in caught.value.problems]
    return [(code, where.line if where else None, where.column if where else None) for code, where in wheres]


def test_a_recipe_is_read_with_its_defaults(small: str) -> None:
    recipe = parse_recipe(small, "r.yaml").recipe
    assert (recipe.adapter.r, recipe.adapter.alpha, recipe.training.learning_rate) == (8, 32, 1e-4)
    assert [source.weight for source in recipe.data.sources] == [1.0, 2.0]


def test_every_key_knows_where_it_comes_from(small: str) -> None:
    loaded = parse_recipe(small, "r.yaml", ["training.steps=3", "data.sources.1.path=x"])
    assert loaded.origin("adapter.r") == "r.yaml:8"
    assert loaded.origin("adapter.alpha") == "default"
    assert loaded.origin("training.steps") == loaded.origin("data.sources.1.path") == "override"
    assert loaded.origin("data.sources.1.weight") == "r.yaml:13"
    assert (loaded.where("adapter.r").line, loaded.where("adapter.r").column) == (8, 6)
    assert (loaded.where("adapter.alpha").line, loaded.where("adapter.alpha").column) == (7, 1)


def test_the_resolved_recipe_reads_back_as_itself(small: str) -> None:
    loaded = parse_recipe(small, "r.yaml", ["base.connector.queries=64", "training.extra={a: no}"])
    assert parse_recipe(as_yaml(loaded.recipe), "again.yaml").recipe == loaded.recipe


def test_an_unknown_key_is_rendered_as_promised(small: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(small.replace("  r: 8", "  rank: 8"), "recipes/owl_lora.yaml")
    assert str(caught.value) == SPEC


def test_all_problems_are_told_at_once() -> None:
    text = """\
version: 1
base:
  model: x
  vision: y
adapter:
  language: lroa
  targets: q_proj
data:
  sorces: [{path: x}]
  max_length: 0
training:
  seed: 1
  seed: 2
  gradient_checkpointing: yes
"""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "all.yaml", ["training.steps=2.5"])
    assert str(caught.value) == EVERYTHING


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  r: 8", "  r: '8'", ("R013", 8, 6)),
        ("  r: 8", "  r: 8.0", ("R013", 8, 6)),
        ("  r: 8", "  r: true", ("R013", 8, 6)),
        ("  r: 8", "  r:", ("R013", 8, 5)),
        ("  r: 8", "  r: -1", ("R013", 8, 6)),
        ("  r: 8", "  r: [8]", ("R013", 8, 6)),
        ("  r: 8", "  r: *x", ("R004", 8, 6)),
        ("  r: 8", "  r: !!int 8", ("R005", 8, 6)),
        ("  r: 8", "  R: 8", ("R012", 8, 3)),
        ("  r: 8", "  r: 8\n  r: 9", ("R003", 9, 3)),
        ("  r: 8", "  targets: [q_proj, 1]", ("R013", 8, 21)),
        ("learning_rate: 1e-4", "learning_rate: .inf", ("R013", 15, 18)),
        ("learning_rate: 1e-4", "learning_rate: 1e-4x", ("R013", 15, 18)),
        ("kind: mlp", "kind: ../mlp", ("R013", 6, 11)),
        ("kind: mlp", "queries: 3", ("R014", 5, 3)),
        ("    - path: rows.jsonl", "    - pth: rows.jsonl", ("R012", 11, 7)),
        ("    - path: rows.jsonl", "    - rows.jsonl", ("R013", 11, 7)),
        ("    - path: rows.jsonl\n    - path: more.jsonl\n      weight: 2", "    []", ("R013", 11, 5)),
        ("version: 1", "version: 2", ("R013", 1, 10)),
        ("version: 1\n", "", ("R014", None, None)),
        ("output:\n  dir: runs/small", "output:", ("R014", 16, 1)),
        ("  language: builtin:b\n", "", ("R015", 2, 1)),
        ("adapter:\n", "adapter:\n  language: frozen\n  connector: frozen\n", ("R015", 7, 1)),
        ("  r: 8", "  r 8", ("R013", 8, 3)),
        ("  r: 8", "\tr: 8", ("R002", 8, 1)),
        ("adapter:", "env:\n  X: 1\nadapter:", ("R012", 7, 1)),
    ],
)
def test_one_fault_is_one_problem_at_its_place(
    small: str, old: str, new: str, expected: tuple[str, int | None, int | None]
) -> None:
    assert old in small
    assert problems_of(small.replace(old, new)) == [expected]


@pytest.mark.parametrize("rows", ["1.5", "-1", ".inf", ".nan", "1e999", "true", "'3'", "[1]"])
def test_bad_rows_are_a_share_or_a_number(small: str, rows: str) -> None:
    assert parse_recipe(small, "a", ["data.max_bad_rows=0.25"]).recipe.data.max_bad_rows == 0.25
    assert parse_recipe(small, "a", ["data.max_bad_rows=3"]).recipe.data.max_bad_rows == 3
    with pytest.raises(RecipeError, match="max_bad_rows"):
        parse_recipe(small, "a", [f"data.max_bad_rows={rows}"])


def test_numbers_may_be_whole_where_they_may_be_broken(small: str) -> None:
    assert parse_recipe(small.replace("1e-4", "1"), "r.yaml").recipe.training.learning_rate == 1.0


def test_a_section_whose_keys_are_all_commented_out_is_empty(small: str) -> None:
    assert parse_recipe(small.replace("  r: 8", "  # r: 8"), "r.yaml").recipe.adapter.r == 16


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "{}"])
def test_an_empty_recipe_names_what_is_missing(text: str) -> None:
    assert [code for code, _, _ in problems_of(text)] == ["R014"] * 4


@pytest.mark.parametrize("text", ["[]", "text", "1", "- a"])
def test_what_is_no_mapping_is_no_recipe(text: str) -> None:
    assert problems_of(text) == [("R013", 1, 1)]
    assert problems_of(text, "a.b=1")[0] == ("R013", 1, 1)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lr", "learning_rate"),
        ("max_steps", "steps"),
        ("per_device_train_batch_size", "batch_size"),
        ("lerning_rate", "learning_rate"),
        ("output_dir", "output.dir"),
        ("max_length", "data.max_length"),
    ],
)
def test_other_tools_names_and_other_sections_are_understood(small: str, word: str, meant: str) -> None:
    with pytest.raises(RecipeError, match=f"did you mean `{meant}`"):
        parse_recipe(small, "r.yaml", [f"training.{word}=1"])


@pytest.mark.parametrize(
    "text",
    [
        "base:\n  model: {}\n",
        "# my token {}\nversion: 1\n",
        "version: [{}\n",
        "a: &x {}\n",
        "{}: 1\n",
        "unknown: {}\n",
        "a:\n\t- {}",
    ],
)
def test_a_secret_is_refused_and_never_echoed(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text.format(SECRET), "r.yaml")
    assert {problem.code for problem in caught.value.problems} == {"R020"}
    assert SECRET[3:] not in str(caught.value)


def test_a_secret_behind_an_escape_or_in_an_override_is_refused_too(small: str) -> None:
    hidden = '"\\x68' + SECRET[1:] + '"'
    with pytest.raises(RecipeError) as caught:
        parse_recipe(small.replace("rows.jsonl", hidden), "r.yaml")
    assert ([problem.code for problem in caught.value.problems], SECRET[3:] in str(caught.value)) == (["R020"], False)
    with pytest.raises(RecipeError) as caught:
        parse_recipe(small, "r.yaml", ["adapter.r=1", f"base.model={SECRET}"])
    assert ([problem.code for problem in caught.value.problems], SECRET[3:] in str(caught.value)) == (["R020"], False)
    assert "command line:2:12" in str(caught.value)


def test_a_pinned_commit_is_not_a_secret(small: str) -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    assert parse_recipe(small.replace("builtin:a", f"a/b@{commit}"), "r.yaml").recipe.base.vision == f"a/b@{commit}"


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (b"\xef\xbb\xbfversion: 1\n", "R002", "byte order mark"),
        ("version: 1\nbase: é".encode("latin-1"), "R002", "r.yaml:2:7"),
        ("version: 1".encode("utf-16"), "R002", "not UTF-8"),
        (b"#" * (MAX_BYTES + 1), "R002", "larger than 256 KB"),
    ],
)
def test_files_that_are_no_text_are_refused(tmp_path: Path, content: bytes, code: str, says: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=rf"(?s){code}.*{says}"):
        load_recipe(path)


@pytest.mark.parametrize("name", ["absent.yaml", ".", "a\0b", "x" * 5000, "/dev/zero"])
def test_what_cannot_be_read_as_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="R001"):
        load_recipe(name)
