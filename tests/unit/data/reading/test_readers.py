"""Whatever holds rows gives the same rows; what is broken costs its line and says where."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qlmm.core.errors import DataError
from qlmm.data.errors import BadRow
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
    "table.csv": lambda p: write_csv(p, ","),
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
    ((origin, bad),) = list(json_rows(path, "rows.json"))
    assert isinstance(bad, BadRow)
    assert (origin.line, bad.column, bad.excerpt) == (3, 8, '  {"a" 2}')


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
