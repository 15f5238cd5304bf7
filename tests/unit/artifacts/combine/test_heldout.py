"""Adapters are compared on rows that none of them was trained on; where that cannot be known, it is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qlmm.artifacts.adapter.manifest import Combination
from qlmm.artifacts.combine.checks import Source
from qlmm.artifacts.combine.heldout import rows_to_compare
from qlmm.core.errors import DataError, ModelError, QlmmError
from qlmm.data.sample import Example, ImageRef, Origin, Preference, Sample, Turn
from tests.unit.artifacts.adapters import manifest

Runs = Callable[..., list[Source]]
# Nothing here looks into it.
BASE: Any = None
NOTHING = DataError.one("D002", "/somewhere/private/rows.jsonl cannot be read")


def text(question: str, answer: str = "yes") -> Sample:
    return Sample((Turn("user", (question,)), Turn("assistant", (answer,))), Origin("rows.jsonl", 1))


def shown(path: Path, question: str = "what is it ?") -> Sample:
    return Sample((Turn("user", (ImageRef(path), question)), Turn("assistant", ("red",))), Origin("rows.jsonl", 1))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Adapters `a`, `b`, … of runs with these held-out and training rows, or whose rows cannot be read."""

    def make(*rows: tuple[Sequence[Sample], Sequence[Example]] | QlmmError, **changes: Any) -> list[Source]:
        made = list(zip("abc", rows, strict=False))
        known = dict(made)

        def read(folder: Path, *_: Any) -> Any:
            found = known[folder.name]
            if isinstance(found, QlmmError):
                raise found
            return SimpleNamespace(held_out=found[0], train=SimpleNamespace(samples=tuple(found[1])))

        monkeypatch.setattr("qlmm.artifacts.combine.heldout.rows_of_run", read)
        return [Source(name, Path(name), manifest(**(changes if name == "b" else {}))) for name in known]

    return make


def test_rows_of_every_run_are_taken_in_turn_once(runs: Runs) -> None:
    one, two, three = (text(question) for question in ("one ?", "two ?", "three ?"))
    chosen = rows_to_compare(runs(([one, three], []), ([two, one], [])), BASE)
    assert list(chosen.samples) == [one, two, three]
    assert chosen.words == "3 rows that the runs held out, on none of which an adapter was trained"


def test_what_one_run_held_out_and_another_was_trained_on_is_left_out(runs: Runs, tmp_path: Path) -> None:
    """The same picture with another question is another row; of a pair, its prompt is compared."""
    red = tmp_path / "red.png"
    held = [shown(red), shown(red, "which colour ?"), text("one ?"), text("two ?")]
    pair = Preference((Turn("user", ("one ?",)),), "yes", "no", Origin("pairs.jsonl", 1))
    chosen = rows_to_compare(runs((held, []), ([], [shown(red), pair])), BASE)
    assert list(chosen.samples) == [shown(red, "which colour ?"), text("two ?")]
    assert (
        chosen.words
        == "2 rows that the runs held out, on none of which an adapter was trained, without 2 on which one was"
    )


def test_nothing_is_measured_where_every_row_was_trained_on(runs: Runs) -> None:
    chosen = rows_to_compare(runs(([text("one ?")], [text("two ?")]), ([text("two ?")], [text("one ?")])), BASE)
    assert not chosen.samples
    assert chosen.words == "not measured: adapters were trained on all 2 rows that the runs held out"


def test_a_combined_adapter_may_have_been_trained_on_anything(runs: Runs) -> None:
    combined = Combination(method="cat", weights=(1.0,), sources=())
    chosen = rows_to_compare(runs(([text("one ?")], []), ([text("two ?")], []), combined=combined), BASE)
    why = "it was combined from others"
    assert chosen.words == f"1 row that the runs held out; b may have been trained on some of them ({why})"


def test_rows_that_have_changed_are_not_those_of_the_run(runs: Runs) -> None:
    changed = ModelError.one("A037", "the rows have changed since the run")
    chosen = rows_to_compare(runs(([text("one ?")], []), changed), BASE)
    why = "its rows cannot be read (A037)"
    assert chosen.words == f"1 row that the runs held out; b may have been trained on some of them ({why})"


def test_rows_of_a_file_are_looked_through_to_its_end(runs: Runs, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": f"{n} ?"}, {"role": "assistant", "content": "x"}]} for n in range(200)
    ]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    trained = [text(f"{number} ?") for number in range(100)]
    chosen = rows_to_compare(runs(([], trained), ([], [])), BASE, file)
    assert [row.turns[0].text for row in chosen.samples] == [f"{number} ?" for number in range(100, 164)]
    assert "64 rows of rows.jsonl" in chosen.words
    assert "without 100 on which one was" in chosen.words


def test_an_earlier_adapter_s_rows_are_not_known(runs: Runs) -> None:
    one = manifest()
    section = one.recipe.adapter.model_copy(update={"start_from": "runs/earlier"})
    recipe = one.recipe.model_copy(update={"adapter": section})
    chosen = rows_to_compare(runs(([text("one ?")], []), ([text("two ?")], []), recipe=recipe), BASE)
    assert chosen.samples
    assert chosen.words.startswith("2 rows")
    assert "b may have been trained on some of them (it continued an earlier adapter)" in chosen.words


def test_rows_that_are_gone_are_said_without_their_place(runs: Runs) -> None:
    chosen = rows_to_compare(runs(NOTHING, NOTHING), BASE)
    assert not chosen.samples
    assert chosen.words.startswith("not measured: no row that a run held out can be read; a: its rows cannot be read (")
    assert "/somewhere" not in chosen.words


def test_rows_of_a_file_are_held_to_the_same(runs: Runs, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [[{"role": "user", "content": one}, {"role": "assistant", "content": "yes"}] for one in ("one ?", "two ?")]
    file.write_text("\n".join(json.dumps({"messages": row}) for row in rows), "utf-8")
    chosen = rows_to_compare(runs(([text("three ?")], [text("one ?")]), NOTHING), BASE, file)
    assert [row.turns[0].text for row in chosen.samples] == ["two ?"]
    assert chosen.words.startswith("1 row of mine.jsonl, without 1 on which one was; b may have been trained on some")
