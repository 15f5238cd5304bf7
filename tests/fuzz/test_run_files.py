"""What a run wrote for itself, damaged: it is read, or refused by an error of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlmm.core.errors import QlmmError
from qlmm.core.events import Saved, StepSkipped
from qlmm.core.seal import read_facts
from qlmm.data.media.remembered import Remembered
from qlmm.data.sample import ImageRef
from qlmm.training.logbook import NAMES, read_metrics
from qlmm.training.run_dir import read_record
from qlmm.training.trainers.reference_cache import ReferenceCache
from tests.fuzz.inputs import FUZZ, damaged, mutated, soon
from tests.run_facts import record

EVENTS = [{"event": NAMES[type(one)], **asdict(one)} for one in (StepSkipped(2, "nan"), Saved(2, "checkpoint-2"))]
PICTURES = {
    "pictures": {"a.mp4": {"bytes": 9, "width": 4, "height": 3, "frames": ["0", "1/25"]}},
    "copies": [["a.mp4", "sha256:0"]],
    "left_out": [["rows.jsonl", 3]],
}
SEAL = {"version": 1, "facts": {"step": 3, "run": "x"}, "files": {"a": {"bytes": 1, "sha256": "0"}}}
CACHED = [{"of": {"base": "x"}, "how": {"seed": 0}}, {"row": 0, "logps": [-1.0, -2.0]}]


def _frames(path: Path) -> object:
    return Remembered.read(path).frames(ImageRef(path=Path("a.mp4")))


def _cache(path: Path) -> None:
    ReferenceCache(path, of={"base": "x"}, how={"seed": 0}).close()


def _lines(values: list[dict[str, object]]) -> str:
    return "".join(json.dumps(one) + "\n" for one in values)


Reader = Callable[[Path], object]
FILES: dict[str, tuple[str, Reader]] = {
    "metrics.jsonl": (_lines(EVENTS), read_metrics),
    "pictures.json": (json.dumps(PICTURES), _frames),
    "run.json": (record().to_text(), lambda path: read_record(path.parent)),
    "seal.json": (json.dumps(SEAL), lambda path: read_facts(path.parent)),
    "reference.jsonl": (_lines(CACHED), _cache),
}


def _read(path: Path, reader: Reader, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with soon(), suppress(QlmmError):
        reader(path)


@pytest.mark.parametrize("name", FILES)
@FUZZ
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(name: str, data: st.DataObject, tmp_path: Path) -> None:
    text, reader = FILES[name]
    if name.endswith("l"):
        whole = [mutated(data, json.loads(line), ["event", "step", "x"]) for line in text.splitlines()]
        changed = _lines(whole)
    else:
        changed = json.dumps(mutated(data, json.loads(text), ["pictures", "frames", "version", "x"]))
    _read(tmp_path / name, reader, changed)
    _read(tmp_path / name, reader, damaged(data, text, '[]{},:"0e9/-\\u'))


@pytest.mark.parametrize("odd", ["[" * 100_000, "1" * 5000, "\0", "null", '"1/0"', "{}"], ids=range(6))
@pytest.mark.parametrize("name", FILES)
def test_what_no_reader_of_json_likes_is_refused(name: str, odd: str, tmp_path: Path) -> None:
    text, reader = FILES[name]
    _read(tmp_path / name, reader, text)
    for place in [place for place, letter in enumerate(text) if letter == ":"][:60]:
        end = min(found for mark in ",}]" if (found := text.find(mark, place)) > 0)
        _read(tmp_path / name, reader, text[: place + 1] + odd + text[end:])
    _read(tmp_path / name, reader, text.replace('"1/25"', odd))
    _read(tmp_path / name, reader, odd + "\n\n")
