"""`qlmm ask` and `qlmm chat`: the answer on stdout, turns and pictures, refusals before anything is loaded."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from qlmm.cli.commands.ask import ask
from qlmm.cli.commands.chat import chat
from qlmm.core.errors import QlmmError
from qlmm.core.filenames import MANIFEST, RUN_RECORD
from tests.talking import Loaded


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    stub = Loaded()
    (tmp_path / "adapter").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(
        sys.modules, "qlmm.artifacts.adapter.load", SimpleNamespace(load=lambda folder, precision: stub)
    )
    monkeypatch.setattr("qlmm.cli.conversation.read_manifest", lambda folder: None)
    return stub


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    Image.new("RGB", (16, 16), "red").save(path)
    return path


def says(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_stdout_holds_the_answer_and_nothing_more(
    loaded: Loaded, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask("adapter", "What is this?", [picture, picture])
    said = capsys.readouterr()
    assert said.out.strip() == "turn 1, 2 pictures"
    assert said.err == "loading adapter\n"
    assert loaded.model.settings["max_new_tokens"] == 256


def test_pictures_stand_before_the_question(loaded: Loaded, picture: Path) -> None:
    ask("adapter", "What is this?", [picture])
    (turn,) = loaded.encoder.samples[0].turns
    assert turn.parts[1] == "What is this?"


def test_a_seed_decides_what_is_drawn(loaded: Loaded) -> None:
    drawn = []
    for seed in (1, 1, 2):
        ask("adapter", "Why?", sample=True, seed=seed)
        drawn.append(loaded.model.drawn)
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_question_of_another_encoding_is_asked_all_the_same(loaded: Loaded) -> None:
    ask("adapter", "caf\udce9?")
    assert loaded.encoder.samples[0].turns[0].text == "caf??"


def test_a_run_stands_for_its_adapter(loaded: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / RUN_RECORD).write_text("{}")
    (tmp_path / "run" / "adapter" / MANIFEST).write_text("{}")
    ask("run", "Why?")
    assert capsys.readouterr().err == "loading run/adapter\n"


@pytest.mark.parametrize("talk", [lambda folder: ask(folder, "What?"), chat])
def test_what_is_no_adapter_is_refused_at_once(talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qlmm.artifacts.adapter.load", None)
    with pytest.raises(QlmmError) as caught:
        talk(str(tmp_path))
    assert caught.value.exit_code == 2
    assert caught.value.problems[0].code == "A001"


@pytest.mark.parametrize("content", [None, b"", b"<html>", b"\x89PNG\r\n\x1a\n"])
def test_a_picture_that_cannot_be_shown_is_refused_before_loading(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlmm.cli.conversation.read_manifest", lambda folder: None)
    monkeypatch.setitem(sys.modules, "qlmm.artifacts.adapter.load", None)
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    for talk in (lambda: ask(str(tmp_path), "What?", [path]), lambda: chat(str(tmp_path), [path])):
        with pytest.raises(QlmmError) as caught:
            talk()
        assert caught.value.exit_code == 2


def test_an_empty_question_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QlmmError) as caught:
        ask(str(tmp_path), "  ")
    assert caught.value.exit_code == 2


def test_chat_remembers_turns_and_pictures(
    loaded: Loaded, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    says(monkeypatch, "hello", "", f"/image {picture}", "and this?", "/reset", "again", "/quit", "never read")
    chat("adapter")
    said = capsys.readouterr()
    assert said.out.split("\n")[:3] == ["turn 1, 0 pictures ", "turn 2, 1 pictures ", "turn 1, 0 pictures "]
    assert said.err.splitlines() == ["loading adapter", "cat.png goes with your next message", "started over"]
    second = loaded.encoder.samples[1]
    assert [turn.role for turn in second.turns] == ["user", "assistant", "user"]
    assert second.turns[1].text == "turn 1, 0 pictures"


def test_chat_begins_with_the_pictures_of_the_command_line(
    loaded: Loaded, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, "one", "two")
    chat("adapter", [picture])
    assert [len(sample.images) for sample in loaded.encoder.samples] == [1, 1]


@pytest.mark.parametrize("mistake", ["/image nowhere.png", "/dance"])
def test_a_mistake_ends_a_script_and_not_a_talk(
    mistake: str, loaded: Loaded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    says(monkeypatch, mistake, "hello")
    with pytest.raises(QlmmError):
        chat("adapter")
    lines = iter([mistake, "hello"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(StopIteration):
        chat("adapter")
    said = capsys.readouterr()
    assert "error[" in said.err
    assert said.out.strip() == "turn 1, 0 pictures"


def test_a_prompt_never_ends_up_in_the_result(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(prompt: str) -> str:
        assert prompt == ""
        raise EOFError

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    chat("adapter")
    said = capsys.readouterr()
    assert said.out == ""
    assert "you> " in said.err
