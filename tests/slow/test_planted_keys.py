"""An access key in everything that a run reads stands in nothing that it writes, prints or gives to a tracker."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import pytest
from transformers import TrainerCallback

from qlmm.api import finetune
from qlmm.artifacts.hub.package import pack
from qlmm.cli.app import main
from qlmm.core.errors import ModelError
from qlmm.core.filenames import CARD
from qlmm.recipe.schema import Recipe
from qlmm.training import trackers
from tests.runs import RECIPE, TinyRun, picture_row

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
    """A run whose questions, answers, names of pictures, bad rows and base have keys."""
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
    place = folder / "base" / "config.json"
    config = json.loads(place.read_text("utf-8"))
    config |= {"note": KEYS[0], "notes": [{"by": f"made with {KEYS[1]}"}]}
    config["text_config"] |= {"note": KEYS[2], "label2id": {"one": KEYS[3]}}
    place.write_text(json.dumps(config), "utf-8")
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


class Tracker(TrainerCallback):
    """Takes what the callbacks of transformers take: settings and configurations at first, then figures."""

    heard: ClassVar[list[str]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        del state, control
        model, peft = found["model"], found["model"].peft_config
        self.heard += [args.to_json_string(), model.config.to_json_string(), str(model.config.to_dict())]
        self.heard += [str({name: one.to_dict() for name, one in peft.items()}), str(model.num_parameters())]

    def on_log(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        del args, state, control
        self.heard.append(str(found["logs"]))


def test_no_key_of_an_input_reaches_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", KEYS[0])
    monkeypatch.setattr(Tracker, "heard", heard := list[str]())
    monkeypatch.setattr(trackers, "tracker_kind", {"wandb": Tracker}.__getitem__)
    (tmp_path / "packages" / "wandb").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    run = planted(tmp_path)
    finetune(run.recipe(*FEW, "data.max_bad_rows=0.5", "output.trackers=[wandb]"))
    text = "\n".join(heard)
    assert not [key for key in KEYS if key in text]
    assert {"learning_rate", "<redacted>", "vision_config", "lora_alpha", "grad_norm"} <= set(
        re.findall(r"<?\w+>?", text)
    )
    # The model itself is as its author wrote it.
    assert KEYS[0] in (tmp_path / "base" / "config.json").read_text("utf-8")


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("length", [0, 160, 164])
def test_no_key_is_in_the_trace_of_a_bug(
    debug: bool, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(recipe: Recipe, *_: object) -> NoReturn:
        rows = (Path(recipe.data.sources[0].path)).read_text("utf-8")
        try:
            raise ValueError(rows)
        except ValueError as cause:
            error = RuntimeError("x" * length, KEYS, {"token": KEYS[0]})
            error.add_note(f"while reading {KEYS[1]}")
            raise error from cause

    monkeypatch.setattr("qlmm.api.make_plan", fail)
    monkeypatch.setenv("QLMM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QLMM_DEBUG", str(int(debug)))
    (tmp_path / "rows.jsonl").write_text("\n".join(KEYS), "utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path), "utf-8")
    monkeypatch.setattr(sys, "argv", ["qlmm", "finetune", str(tmp_path / "recipe.yaml"), "--json"])
    with pytest.raises(SystemExit, match="101"):
        main()
    shown = capsys.readouterr()
    trace = (tmp_path / "home" / "crash.txt").read_text("utf-8")
    assert "in fail" in trace
    # Not a part of one either, where a message is cut short.
    assert not [key for key in KEYS if key[:10] in trace + shown.out + shown.err]
