"""Sources become samples; bad rows stop everything or are left out and counted; the fingerprint sees every change."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qlmm.core.errors import DataError, UsageError
from qlmm.data.errors import OtherKind
from qlmm.data.reading import dataset
from qlmm.data.reading.dataset import Loaded, detect_format, load_samples
from qlmm.data.sample import Feedback, ImageRef, Preference
from qlmm.recipe.schema import Source
from qlmm.training.objective import redirected


def row(text: str = "A cat.", image: str | None = "a.png") -> dict[str, Any]:
    return {
        **({"image": image} if image else {}),
        "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": text}],
    }


def write(path: Path, rows: list[Any]) -> Source:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows))
    return Source(path=str(path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 4)).save(tmp_path / "b.png")
    return tmp_path


def load(*sources: Source, **settings: Any) -> Loaded[Any]:
    return load_samples(sources, **settings)


def test_samples_of_all_sources_in_order_with_counts(folder: Path) -> None:
    first = write(folder / "a.jsonl", [row("1"), row("2", None)])
    second = write(folder / "b.jsonl", [{"image": "b.png", "text": "3"}])
    loaded = load(first, second)
    assert [sample.turns[-1].text for sample in loaded.samples] == ["1", "2", "3"]
    assert loaded.source == (0, 0, 1)
    assert [(one.format, one.rows, one.kept, one.bad, one.text_only) for one in loaded.sources] == [
        ("llava", 2, 2, 0, 1),
        ("caption", 1, 1, 0, 0),
    ]
    assert str(loaded.samples[1].origin) == f"{folder / 'a.jsonl'}:2"


BROKEN = [row(), "{", row(""), row(image="../a.png"), {"id": 1}, row("fine", None)]


def test_by_default_every_bad_row_is_listed_with_its_place(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(write(folder / "a.jsonl", BROKEN))
    problems = caught.value.problems
    assert [one.where.line for one in problems if one.where] == [2, 3, 4, 5]
    assert {one.code for one in problems} == {"D001"}
    assert all(one.help for one in problems)


def test_bad_rows_are_left_out_up_to_the_limit(folder: Path) -> None:
    source = write(folder / "a.jsonl", BROKEN)
    loaded = load(source, max_bad_rows=0.7)
    assert [sample.origin.line for sample in loaded.samples] == [1, 6]
    assert [one.origin.line for one in loaded.bad] == [2, 3, 4, 5]
    with pytest.raises(DataError, match="4 of 6 rows are bad, more than") as caught:
        load(source, max_bad_rows=0.6)
    assert len(caught.value.problems) == 5


def test_missing_pictures_are_reported_together_with_the_likely_cause(folder: Path) -> None:
    source = write(folder / "a.jsonl", [row(image=f"x/{number}.png") for number in range(12)])
    with pytest.raises(DataError) as caught:
        load(source)
    (problem,) = caught.value.problems
    assert problem.code == "D005"
    assert f"12 of 12 rows name pictures that are not in {folder}: x/0.png" in problem.message
    assert "x/9.png …" in problem.message
    assert "image_root" in (problem.help or "")


def test_a_name_no_file_system_takes_is_a_missing_picture(folder: Path) -> None:
    with pytest.raises(DataError, match="D005"):
        load(write(folder / "a.jsonl", [row(image="a" * 300 + ".png")]))


def test_pictures_are_looked_for_in_the_named_root(folder: Path) -> None:
    (folder / "deep").mkdir()
    source = write(folder / "deep" / "a.jsonl", [row()])
    with pytest.raises(DataError, match="D005"):
        load(source)
    assert load(source.model_copy(update={"image_root": str(folder)})).samples[0].images[0].path == folder / "a.png"


def test_headers_are_checked_where_asked(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"<html>")
    Image.new("1", (8000, 7000)).save(folder / "c.png")  # one bit a pixel: 7 MB
    source = write(folder / "a.jsonl", [row(), row(image="b.png"), row(image="c.png")])
    assert len(load(source).samples) == 3
    with pytest.raises(DataError) as caught:
        load(source, check_pictures=True)
    told = [(one.where.line, one.message) for one in caught.value.problems if one.where]
    assert [line for line, _ in told] == [2, 3]
    assert "not a picture in one of the formats" in told[0][1]
    assert "8000 × 7000 is more than the 50,000,000 pixels" in told[1][1]


def test_a_row_without_its_picture_names_it(folder: Path) -> None:
    rows = [row(), row(image="none.png"), {"messages": []}]
    bad = load(write(folder / "a.jsonl", rows), max_bad_rows=math.inf).bad
    assert [one.picture and one.picture.name for one in bad] == ["none.png", None]


def test_an_unknown_shape_is_told_what_it_lacks(folder: Path) -> None:
    with pytest.raises(DataError, match="their keys are `q`, `a`") as caught:
        load(write(folder / "a.jsonl", [{"q": 1, "a": 2}]))
    assert "llava: conversations" in str(caught.value)
    with pytest.raises(UsageError, match="did you mean `llava`"):
        load(write(folder / "a.jsonl", [row()]).model_copy(update={"format": "lava"}))


def test_a_named_format_wins_over_detection(folder: Path) -> None:
    source = write(folder / "a.jsonl", [{"text": "S.\nHuman: hi\nAI: yo"}]).model_copy(update={"format": "caption"})
    with pytest.raises(DataError, match="no `image` or `images` or `file_name`; the row has `text`"):
        load(source)


def pair(rejected: str = "A dog.", image: str = "a.png") -> dict[str, Any]:
    return {"question": "What?", "chosen": "A cat.", "rejected": rejected, "image": image}


def test_preferences_are_samples_of_their_own_kind(folder: Path) -> None:
    source = write(folder / "a.jsonl", [pair(), pair("A cat. "), {"question": "Q", "chosen": "A"}, pair(image="x.png")])
    loaded = load(source, kind="preference", max_bad_rows=0.9)
    (sample,) = loaded.samples
    assert isinstance(sample, Preference)
    assert (sample.chosen, sample.rejected, sample.origin.line) == ("A cat.", "A dog.", 1)
    assert sample.images == (ImageRef(path=folder / "a.png"),)
    assert [bad.origin.line for bad in loaded.bad] == [2, 3, 4]
    assert [one.code for one in loaded.problems] == ["D005", "D001", "D001"]
    assert [(one.format, one.rows, one.kept) for one in loaded.sources] == [("rlaif_v", 4, 1)]


def test_a_row_without_one_side_does_not_hide_what_the_others_are(folder: Path) -> None:
    ranking = {"conversations": [{"from": "human", "value": "Q"}], "chosen": {"from": "gpt", "value": "A"}}
    whole = {**ranking, "rejected": {"from": "gpt", "value": "B"}}
    loaded = load(write(folder / "a.jsonl", [ranking, whole]), kind="preference", max_bad_rows=0.5)
    assert loaded.sources[0].format == "sharegpt_ranking"
    assert "no `rejected`" in loaded.problems[0].message


def judged(label: Any = True, **keys: Any) -> dict[str, Any]:
    return {"prompt": "What?", "completion": "A cat.", "label": label, "image": "a.png", **keys}


def test_judged_answers_are_samples_of_their_own_kind(folder: Path) -> None:
    bad = [judged("yes"), {**judged(), "label": None}, judged(completion=" "), judged(image="x.png")]
    loaded = load(write(folder / "a.jsonl", [judged(), judged(False), *bad]), kind="feedback", max_bad_rows=0.9)
    assert all(isinstance(sample, Feedback) for sample in loaded.samples)
    told = [(sample.completion, sample.desirable, sample.origin.line) for sample in loaded.samples]
    assert told == [("A cat.", True, 1), ("A cat.", False, 2)]
    assert [bad.origin.line for bad in loaded.bad] == [3, 4, 5, 6]
    assert loaded.sources[0].format == "feedback"


def test_a_row_without_a_verdict_does_not_hide_what_the_others_are(folder: Path) -> None:
    for first in ({"prompt": "Q", "completion": "A"}, judged(1)):
        loaded = load(write(folder / "a.jsonl", [first, judged()]), kind="feedback", max_bad_rows=0.5)
        assert loaded.sources[0].format == "feedback"
        assert [bad.origin.line for bad in loaded.bad] == [1]


def test_a_label_that_is_no_verdict_leaves_a_row_a_conversation(folder: Path) -> None:
    for label in ("cat", 3, None):
        assert load(write(folder / "a.jsonl", [judged(label)])).sources[0].format == "messages"
    captions = [{"image": "a.png", "text": "A cat.", "label": True}]
    assert load(write(folder / "a.jsonl", captions)).sources[0].format == "caption"


def test_pairs_are_taken_where_feedback_is_wanted(folder: Path) -> None:
    write(folder / "a.jsonl", [judged()])
    sources = [write(folder / "b.jsonl", [pair()]), write(folder / "a.jsonl", [judged()])]
    loaded = load_samples(sources, kind="feedback")
    assert [type(sample) for sample in loaded.samples] == [Preference, Feedback]
    assert [source.rows for source in loaded.sources] == [1, 1]


@pytest.mark.parametrize(
    ("rows", "kind", "found"),
    [
        ([pair(), pair()], "conversation", "preference"),
        ([row(), row()], "preference", "conversation"),
        ([row(), row()], "feedback", "conversation"),
        ([judged(), judged()], "conversation", "feedback"),
        ([judged(), judged()], "preference", "feedback"),
    ],
)
def test_rows_of_the_other_kind_are_one_error_that_says_what_they_are(
    folder: Path, rows: list[Any], kind: str, found: str
) -> None:
    source = write(folder / "a.jsonl", rows)
    with pytest.raises(OtherKind) as caught:
        load(source, kind=kind, max_bad_rows=math.inf)
    (problem,) = caught.value.problems
    assert problem.code == "D010"
    assert str(folder / "a.jsonl") in problem.message
    assert caught.value.found == found
    assert len(load(source, kind=None).samples) == 2


def test_a_named_format_decides_what_a_row_with_both_is(folder: Path) -> None:
    both = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "prompt": "Q"}
    source = write(folder / "a.jsonl", [{**both, "chosen": "A", "rejected": "B"}])
    assert load(source, kind="preference").sources[0].format == "preference"
    assert load(source.model_copy(update={"format": "messages"})).samples[0].turns[-1].text == "A"


def test_the_fingerprint_sees_both_answers(folder: Path) -> None:
    def of(**changed: str) -> str:
        return load(write(folder / "a.jsonl", [{**pair(), **changed}]), kind="preference").fingerprint

    assert of() == of()
    exchanged = of(chosen="A dog.", rejected="A cat.")
    assert len({of(), exchanged, of(rejected="A cow."), of(chosen="A cow."), of(image="b.png")}) == 5


def test_the_fingerprint_sees_the_verdict(folder: Path) -> None:
    prints = {load(write(folder / "a.jsonl", [judged(label)]), kind="feedback").fingerprint for label in (True, False)}
    assert len(prints) == 2


@pytest.mark.parametrize("rows", [[], ["{", "nonsense"]])
def test_nothing_to_learn_from_is_an_error(folder: Path, rows: list[Any]) -> None:
    with pytest.raises(DataError, match="D007"):
        load(write(folder / "a.jsonl", rows), max_bad_rows=math.inf)


def test_the_fingerprint_sees_text_order_rows_and_pictures(folder: Path) -> None:
    def of(*rows: dict[str, Any]) -> str:
        return load(write(folder / "a.jsonl", list(rows))).fingerprint

    base = of(row("1"), row("2"))
    assert base == of(row("1"), row("2"))
    changed = {of(row("2"), row("1")), of(row("1")), of(row("1"), row("2"), row("2")), of(row("1"), row("2", "b.png"))}
    assert len(changed) == 4
    assert base not in changed
    Image.new("RGB", (60, 40), "red").save(folder / "a.png")
    assert of(row("1"), row("2")) != base


def test_the_fingerprint_does_not_depend_on_where_the_files_lie(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "a.png").write_bytes((folder / "a.png").read_bytes())
    rows = [row()]
    assert load(write(folder / "a.jsonl", rows)).fingerprint == load(write(other / "z.jsonl", rows)).fingerprint


def test_what_is_not_learned_belongs_to_the_fingerprint(folder: Path) -> None:
    masked = row()
    masked["conversations"] = [*masked["conversations"], *masked["conversations"]]
    plain = load(write(folder / "a.jsonl", [masked])).fingerprint
    masked["conversations"][1] = {**masked["conversations"][1], "loss": False}
    assert load(write(folder / "a.jsonl", [masked])).fingerprint != plain


@pytest.mark.parametrize(
    ("row", "help"),
    [
        ({"conversations": "Q", "image": "a.png"}, "the nearest format is llava: `conversations` is not a list"),
        ({"prompt": "Q", "id": 1}, "the nearest format is messages: `prompt` without `completion`"),
        ({"foo": 1}, "rename the keys to what a known format needs (alpaca: "),
    ],
)
def test_rows_of_no_format_are_shown_the_nearest_and_what_they_lack(row: dict[str, Any], help: str) -> None:
    with pytest.raises(DataError) as caught:
        detect_format("rows.jsonl", [row])
    assert caught.value.problems[0].code == "D004"
    assert (caught.value.problems[0].help or "").startswith(help)


def test_reading_ends_where_bad_rows_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "MOST_BAD", 3)
    path = tmp_path / "rows.json"
    path.write_text('[{"conversations": []}' + ", {}" * 50 + "]")
    with pytest.raises(DataError, match="more than 3 rows are bad") as caught:
        load_samples([Source(path=str(path))], max_bad_rows=math.inf)
    assert [problem.code for problem in caught.value.problems] == ["D006", *["D001"] * 4]


def test_owners_of_pairs_are_shown_what_pairs_look_like(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": said, "worse": "B"}))
    with pytest.raises(OtherKind) as caught:
        load_samples([Source(path=str(tmp_path / "rows.jsonl"))], kind="preference")
    help = redirected(caught.value).problems[0].help or ""
    for told in (
        "training.objective: sft",
        "swift_ranking: messages/query + rejected_",
        "`messages`, `worse`",
    ):
        assert told in help
