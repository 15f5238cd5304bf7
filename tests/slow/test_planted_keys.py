"""An access key in everything that a run reads stands in nothing that it writes or prints."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from qlmm.api import finetune
from qlmm.artifacts.hub.package import pack
from qlmm.cli.app import main
from qlmm.core.errors import ModelError
from qlmm.core.filenames import CARD
from tests.runs import TinyRun, picture_row

pytestmark = pytest.mark.slow

KEYS = (
    "hf_" + "aB3dE5gH7j" * 3,
    "ghp_" + "a1B2" * 9,
    "sk-proj-" + "x9" * 20,
    "AKIA" + "A1B2" * 4,
    "xoxb-" + "1" * 20,
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "a1B2c3D4e5F6",
)
FEW = ("training.steps=2", "training.save_every=1", "evaluation.answers=4", "data.max_length=1000")


def planted(folder: Path) -> TinyRun:
    """A run whose questions, answers, names of pictures, and bad rows have keys."""
    run = TinyRun.make(folder)
    rows = []
    for number in range(24):
        key = KEYS[number % len(KEYS)]
        row = picture_row(folder, number)
        os.rename(folder / f"{number}.png", folder / f"{key}-{number}.png")
        question = {"role": "user", "content": f"what is {key} ?"}
        answer = {"role": "assistant", "content": f"it is \x1b[31m{key}\x07"}
        rows.append(row | {"messages": [question, answer], "images": [f"{key}-{number}.png"]})
    bad = [row | {"images": [f"missing-{KEYS[0]}.png"]} for row in rows[:2]]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in [*rows, *bad]), encoding="utf-8")
    return run


def forms(key: str) -> list[bytes]:
    """A key as it stands, and as Markdown, HTML and URLs write it."""
    return [key.encode(), key.replace("_", r"\_").encode(), key.replace("_", "&#95;").encode()]


def leaks(folder: Path) -> list[str]:
    """Files below a folder with one of the keys in their text or their name."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [
        f"{path.relative_to(folder)}: {key[:6]}"
        for path in found
        for key in KEYS
        if key in path.name or any(form in path.read_bytes() for form in forms(key))
    ]


def test_no_key_of_an_input_is_in_an_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", KEYS[0])
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2 + "01234567")
    monkeypatch.setenv("QLMM_HOME", str(tmp_path / "home"))
    (tmp_path / "in").mkdir()
    run = planted(tmp_path / "in")
    told: list[str] = []
    loaded = run.recipe(*FEW, f"output.dir={tmp_path}/run", "data.max_bad_rows=0.5")
    outcome = finetune(loaded, listener=lambda event: told.append(str(event)))
    assert outcome.adapter is not None
    written = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*")}
    assert {"run.json", "metrics.jsonl", "report.html", "skipped.jsonl", "adapter/README.md"} <= written
    assert leaks(tmp_path / "run") == []
    card = (outcome.adapter / CARD).read_text("utf-8")
    assert "redacted" in card
    report = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert not {"\x1b", "\x07"} & {*card, *report}
    pack(outcome.adapter, "me/x", unproven=True)
    monkeypatch.setattr(sys, "argv", ["qlmm", "verify", str(outcome.adapter)])
    with suppress(SystemExit):
        main()
    shown = capsys.readouterr()
    assert not [key for key in KEYS if key in shown.out + shown.err + "".join(told)]
    (outcome.adapter / CARD).write_text(card + KEYS[0].replace("_", r"\_"), "utf-8")
    with pytest.raises(ModelError, match=r"H011.*Hugging Face token"):
        pack(outcome.adapter, "me/x", unproven=True)
