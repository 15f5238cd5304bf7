"""Whatever holds rows gives the same rows; what is broken costs its line and says where."""

from __future__ import annotations

import csv
import gzip
import json
import re
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qlmm.core.errors import DataError
from qlmm.data.errors import BadRow
from qlmm.data.reading import text_files
from qlmm.data.reading.readers import picture_folder, read_rows
from qlmm.data.reading.text_files import json_rows
from qlmm.recipe.schema import Source

ROWS: list[dict[str, Any]] = [{"image": "a.png", "text": "Ä cat."}, {"image": "b.png", "text": "A\ndog, 狗."}]


def lines(rows: list[dict[str, Any]] = ROWS, end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def read(path: Path | str, **settings: Any) -> list[Any]:
    return [row for _, row in read_rows(Source(path=str(path), **settings))]


def write_csv(path: Path, delimiter: str) -> None:
    body = delimiter.join(["image", "text"]) + "\r\n"
    body += f'a.png{delimiter}"Ä cat."\r\nb.png{delimiter}"A\ndog, 狗."\r\n'
    path.write_bytes(("\ufeff" + body).encode("utf-8"))


def write_parquet(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "array.json": lambda p: p.write_text(json.dumps(ROWS, indent=2), "utf-8"),
    "mark.json": lambda p: p.write_text("\ufeff \n" + json.dumps(ROWS), "utf-8"),
    "rows.jsonl": lambda p: p.write_text(lines(), "utf-8"),
    "mark.jsonl": lambda p: p.write_text("\ufeff" + lines(), "utf-8"),
    "windows.jsonl": lambda p: p.write_bytes(lines(end="\r\n").encode("utf-8")),
    "gaps.jsonl": lambda p: p.write_text("\n\n" + lines(end="\n \n"), "utf-8"),
    "no_end.jsonl": lambda p: p.write_text(lines().rstrip("\n"), "utf-8"),
    "array.jsonl": lambda p: p.write_text(json.dumps(ROWS), "utf-8"),
    "lines.json": lambda p: p.write_text(lines(), "utf-8"),
    "packed.jsonl.gz": lambda p: p.write_bytes(gzip.compress(lines().encode("utf-8"))),
    "packed.json.gz": lambda p: p.write_bytes(gzip.compress(json.dumps(ROWS).encode("utf-8"))),
    "UPPER.JSONL": lambda p: p.write_text(lines(), "utf-8"),
    "rows.ndjson": lambda p: p.write_text(lines(), "utf-8"),
    "packed.JSON.GZ": lambda p: p.write_bytes(gzip.compress(json.dumps(ROWS).encode("utf-8"))),
    "table.csv": lambda p: write_csv(p, ","),
    "semicolons.csv": lambda p: write_csv(p, ";"),
    "tabs.csv": lambda p: write_csv(p, "\t"),
    "commas.tsv": lambda p: write_csv(p, ","),
    "wide.csv": lambda p: (write_csv(p, "\t"), p.write_bytes(p.read_text("utf-8-sig").encode("utf-16"))),
    "table.tsv": lambda p: write_csv(p, "\t"),
    "table.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    assert read(tmp_path / name) == ROWS
    assert read(tmp_path / name, limit=1) == ROWS[:1]


def test_rows_know_their_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + lines(), "utf-8")
    assert [str(origin) for origin, _ in read_rows(Source(path=str(path)))] == [f"{path}:2", f"{path}:3"]


@pytest.mark.parametrize(
    ("body", "line", "column", "reason"),
    [
        (b'{"a": 1}\n{"a": }\n{"a": 3}\n', 2, 7, "broken JSON: Expecting value"),
        (b'{"a": 1}\n{"a": "\xff"}\n{"a": 3}\n', 2, 8, "not UTF-8 (byte 0xff)"),
        (b'{"a": 1}\n[1]\n{"a": 3}\n', 2, None, "a row must be an object"),
        (b'{"a": 1}\n' + b"[" * 100_000 + b'\n{"a": 3}\n', 2, None, "nested too deeply"),
        (b'{"a": 1}\n{"a": ' + b"9" * 5000 + b'}\n{"a": 3}\n', 2, None, "broken JSON"),
        (b'{"a": 1}\n{"a": "' + b"x" * 17_000_000 + b'"}\n{"a": 3}\n', 2, None, "longer than 16 MiB"),
    ],
    ids=["json", "utf-8", "list", "deep", "huge number", "long"],
)
def test_a_broken_line_costs_that_line(body: bytes, line: int, column: int | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(body)
    first, (origin, bad), last = list(json_rows(path, "rows.jsonl"))
    assert first[1], last[1] == ({"a": 1}, {"a": 3})
    assert isinstance(bad, BadRow)
    assert (origin.line, bad.column) == (line, column)
    assert reason in bad.reason
    assert len(bad.excerpt or "") <= 120


def test_a_long_excerpt_has_no_part_of_a_key(tmp_path: Path) -> None:
    key = "hf_" + "aB3dE5gH7j" * 3
    for before in range(20, 130):
        path = tmp_path / "rows.jsonl"
        path.write_text(f'{{"a": "{key} {"x" * before}" "b" {"y" * before} {key}\n')
        ((_, bad),) = list(json_rows(path, "rows.jsonl"))
        assert isinstance(bad, BadRow)
        assert bad.excerpt is not None
        assert not re.search("hf_a|aB3d|E5gH", bad.excerpt)


def test_a_long_excerpt_keeps_its_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "' + "x" * 500 + '" "b": 1}\n')
    ((_, bad),) = list(json_rows(path, "rows.jsonl"))
    assert isinstance(bad, BadRow)
    assert bad.excerpt is not None
    assert bad.column is not None
    assert bad.excerpt[bad.column - 1 :].startswith('"b"')


def test_a_broken_array_says_where(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n  {"a": 1},\n  {"a" 2}\n]')
    first, (origin, bad) = list(json_rows(path, "rows.json"))
    assert first[1] == {"a": 1}
    assert isinstance(bad, BadRow)
    assert (origin.line, bad.column, bad.excerpt) == (3, 8, '  {"a" 2}')


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(max_size=3), st.one_of(st.integers(), st.text(max_size=9)), max_size=3)))
def test_an_array_is_the_same_however_it_is_cut(
    rows: list[dict[str, Any]], chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=chunk % 2 or None), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "CHUNK", chunk)
        assert [row for _, row in json_rows(path, "cut.json")] == rows


@pytest.mark.parametrize(
    ("body", "good", "line", "reason"),
    [
        (b'[{"a": 1}\n,{"a": 2}\n {"a": 3}]', 2, 3, "Expecting ',' delimiter"),
        (b'[{"a": 1},\n{"a": "\xff"}]', 1, 2, "not UTF-8 (byte 0xff)"),
        (b'[{"a": 1}]\n[', 1, 2, "Extra data"),
        (b'[{"a": 1},\n{"a": ', 1, 2, "broken JSON"),
        (b'[{"a": 1},\n' + b"[" * 100_000, 1, 2, "nested too deeply"),
    ],
)
@pytest.mark.parametrize("chunk", [3, 10**6])
def test_an_array_is_read_up_to_where_it_breaks(
    body: bytes, good: int, line: int, reason: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if b"[[" not in body:
        monkeypatch.setattr(text_files, "CHUNK", chunk)
    (tmp_path / "rows.json").write_bytes(body)
    *rows, (origin, bad) = list(json_rows(tmp_path / "rows.json", "rows.json"))
    assert len(rows) == good
    assert isinstance(bad, BadRow)
    assert (origin.line, reason in bad.reason) == (line, True)


def test_a_large_array_takes_the_memory_of_a_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.json.gz"
    path.write_bytes(gzip.compress(b"[" + b",".join([b'{"a": [[], {}]}'] * 2_000_000) + b"]"))
    tracemalloc.start()
    try:
        read_up = 0
        for _, row in islice(json_rows(path, "rows.json.gz"), 200_000):
            read_up += isinstance(row, dict)
        assert (read_up, tracemalloc.get_traced_memory()[1] < 8_000_000) == (200_000, True)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["bomb.json.gz", "bomb.jsonl.gz", "bomb.csv.gz"])
def test_a_packed_file_may_not_grow_beyond_measure(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "FREE", 100_000)
    (tmp_path / name).write_bytes(gzip.compress(b"[" * ("json.gz" in name) + b" " * 50_000_000))
    ((_, bad),) = list(read_rows(Source(path=str(tmp_path / name))))
    assert isinstance(bad, BadRow)
    assert "unpacks to more than 100 times its size" in bad.reason


def test_one_object_is_not_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"data": ROWS}, indent=2))
    ((_, bad),) = list(json_rows(path, "rows.json"))
    assert isinstance(bad, BadRow)
    assert bad.reason == "the file is one object (data), not rows"


@pytest.mark.parametrize("percent", range(0, 100, 10))
@pytest.mark.parametrize("name", ["packed.jsonl.gz", "rows.jsonl", "array.json", "table.csv", "table.parquet"])
def test_a_cut_file_is_explained(name: str, percent: int, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * percent // 100])
    try:
        rows = read(path)
    except DataError:
        return
    assert all(isinstance(row, (dict, BadRow)) for row in rows)


@settings(max_examples=200, deadline=None)
@given(body=st.one_of(st.binary(max_size=60), st.text(alphabet='{}[]",: \n\\u0dabn1e', max_size=40).map(str.encode)))
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.jsonl.gz", "x.csv"])
def test_only_bad_rows_come_out_of_noise(body: bytes, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(body)
    assert all(isinstance(row, (dict, BadRow)) for row in read(path))


def test_csv_rows_with_too_many_fields_are_bad(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image,text\na.png,one,two\nb.png,three\n")
    bad, good = read(path)
    assert bad.reason == "more fields than the header's 2"
    assert good == {"image": "b.png", "text": "three"}


@pytest.mark.parametrize(
    ("body", "line", "reason", "help"),
    [
        (b'a,b\n1,2\n3,"4" 5\n6,7\n', 3, "not CSV", "twice"),
        (b'a,b\n1,"2\n2"\n3,"4\n4" 5\n6,7\n', 4, "not CSV", "twice"),
        (b'a,b\n1,2\n3,"4\n5,6\n', 3, "not CSV", "twice"),
        (b"a,b\n1,2\n" + b"x,y\n" * 5000 + b"1,caf\xe9\n", 5003, "not UTF-8 (byte 0xe9)", "CSV UTF-8"),
        (b'a,b\n\n1,"2\n2"\n\n1,2,3\n', 6, "more fields", None),
    ],
)
def test_the_line_that_is_wrong_is_named(body: bytes, line: int, reason: str, help: str | None, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(body)
    ((origin, bad),) = [one for one in read_rows(Source(path=str(tmp_path / "t.csv"))) if isinstance(one[1], BadRow)]
    assert isinstance(bad, BadRow)
    assert (origin.line, reason in bad.reason, (help or "") in (bad.help or "")) == (line, True, True)


def test_a_csv_field_may_be_as_long_as_a_picture(tmp_path: Path) -> None:
    before, url = csv.field_size_limit(), "data:image/png;base64," + "A" * 1_000_000
    (tmp_path / "t.csv").write_text(f'image,text\n"{url}",quoted\n{url},bare\n')
    assert read(tmp_path / "t.csv") == [{"image": url, "text": "quoted"}, {"image": url, "text": "bare"}]
    assert csv.field_size_limit() == before


def test_messages_may_stand_in_a_column_as_text(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "It's 5?"}, {"role": "assistant", "content": "Yes \u00e4."}]
    answers = ['[{"name": "cat"}]', "[1]", "{}", "[]", "[a", '{"role', "{'a'}"]
    for written in (json.dumps(said), repr(said), f" {json.dumps(said)} "):
        (tmp_path / "t.jsonl").write_text(
            json.dumps({"messages": written, **dict(zip("abcdefg", answers, strict=True))})
        )
        (row,) = read(tmp_path / "t.jsonl")
        assert row["messages"] == said
        assert [row[key] for key in "abcdefg"] == answers


def test_folders_of_shards_give_the_split(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, numbers in (("train", (0, 1)), ("test", (0,))):
        for number in numbers:
            write_parquet(tmp_path / "data" / f"{split}-{number:05}-of-{len(numbers):05}.parquet")
    (tmp_path / "data" / "dataset_infos.json").write_text("{}")
    origins = [str(origin) for origin, _ in read_rows(Source(path=str(tmp_path)))]
    assert origins == [
        f"{tmp_path}/data/train-0000{shard}-of-00002.parquet:{row}" for shard in (0, 1) for row in (1, 2)
    ]
    assert read(tmp_path, split="test") == ROWS
    with pytest.raises(DataError, match="no file of the split `dev`"):
        read(tmp_path, split="dev")
    (tmp_path / "data" / "train-extra.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="several data files"):
        read(tmp_path)


def test_the_metadata_of_a_split_lie_in_its_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps({"file_name": f"{split}.png", "text": "A"}))
    assert read(tmp_path)[0]["file_name"] == "train.png"
    assert read(tmp_path, split="test")[0]["file_name"] == "test.png"
    assert picture_folder(Source(path=str(tmp_path), split="test")) == tmp_path / "test"


@pytest.mark.parametrize("indent", [None, 1])
def test_captions_of_coco_are_joined(indent: int | None, tmp_path: Path) -> None:
    annotations = [{"id": 1, "image_id": 7, "caption": "A"}, {"id": 2, "image_id": 7, "caption": "B"}, {"image_id": 8}]
    whole = {"info": {}, "images": [{"id": 7, "file_name": "a.png"}], "annotations": annotations}
    (tmp_path / "captions.json").write_text(json.dumps(whole, indent=indent))
    first, second, bad = read(tmp_path / "captions.json")
    assert [first, second] == [{"file_name": "a.png", "image_id": 7, "caption": caption} for caption in "AB"]
    assert "without a `caption`" in bad.reason


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_picture_folder_needs_its_metadata(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="metadata"):
        read(tmp_path)
    body = '{"file_name": "a.png", "text": "A"}\n' if kind == "jsonl" else "file_name,text\na.png,A\n"
    (tmp_path / f"metadata.{kind}").write_text(body)
    assert read(tmp_path) == [{"file_name": "a.png", "text": "A"}]
    assert picture_folder(Source(path=str(tmp_path))) == tmp_path


def test_saved_data_sets_keep_their_pictures_encoded(tmp_path: Path) -> None:
    import datasets

    table = {"image": [Image.new("RGB", (4, 4), "red")], "text": ["red"]}
    whole = datasets.DatasetDict({"train": datasets.Dataset.from_dict(table)})
    whole.save_to_disk(str(tmp_path / "saved"))
    (row,) = read(tmp_path / "saved")
    assert row["text"] == "red"
    assert row["image"]["bytes"].startswith(b"\x89PNG")
    with pytest.raises(DataError, match="no split `test`"):
        read(tmp_path / "saved", split="test")


def test_what_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(DataError, match=r"no such file.*") as caught:
        read(tmp_path / "row.jsonl")
    assert "rows.jsonl" in str(caught.value)
    with pytest.raises(DataError, match="unknown kind of file"):
        read(Path(__file__))


def test_the_hub_is_asked_for_ids_only_and_says_when_it_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    asked: list[Any] = []

    def refuse(name: str, **settings: Any) -> Any:
        asked.append((name, settings))
        raise ConnectionError("offline\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="some/rows@main is neither on disk nor") as caught:
        read("some/rows@main")
    assert "HF_HUB_OFFLINE is set" in str(caught.value)
    assert asked == [("some/rows", {"split": "train", "revision": "main"})]


def test_hub_rows_come_from_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets
    from huggingface_hub import constants

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    pictures = [{"bytes": None, "path": str(tmp_path / "a.png")}, {"bytes": None, "path": "/etc/passwd"}]
    table = datasets.Dataset.from_dict({"image": pictures, "text": ["in the cache", "not"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **settings: table)
    cached, other = read("some/rows")
    assert cached["image"].path == tmp_path / "a.png"
    assert other["image"] == {"bytes": None, "path": "/etc/passwd"}


def test_a_file_that_cannot_be_read_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text(lines(), "utf-8")

    def refuse(*settings: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        read(tmp_path / "rows.jsonl")


def test_packaged_data_are_named_through_the_callers_function(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(lines(), "utf-8")
    source = Source(path="builtin:emoji")
    rows = [row for _, row in read_rows(source, resolve=lambda name: {"emoji": tmp_path / "rows.jsonl"}[name])]
    assert rows == ROWS
    with pytest.raises(DataError):
        read("builtin:emoji")
