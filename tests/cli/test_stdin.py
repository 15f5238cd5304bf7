"""No command asks anything: what stands at stdin is read by ``chat`` alone, which is a conversation."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from qlmm.artifacts.adapter.folder import file_hashes
from qlmm.artifacts.adapter.manifest import write_manifest
from qlmm.cli.app import main
from qlmm.core.filenames import ADAPTER_CONFIG
from qlmm.recipe.load import parse_recipe
from tests.commands import commands
from tests.runs import RECIPE, text_row
from tests.sharing import shared_adapter
from tests.unit.artifacts.adapters import manifest
from tests.zoo_runs import Zoo, finished_run

CODE = {"auto_map": {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Tokenizer", None]}}
TALKS = {("chat",)}


class Terminal(io.StringIO):
    """Stands for a terminal at which nobody sits, and notes every look at what might be typed."""

    def __init__(self, asked: list[str]) -> None:
        super().__init__()
        self.asked = asked

    def isatty(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> str:
        self.asked.append("read")
        return super().read(size)

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]  # None is taken, too
        self.asked.append("readline")
        return super().readline(-1 if size is None else size)

    def __next__(self) -> str:
        self.asked.append("next")
        return super().__next__()


@dataclass
class Desk:
    """A folder with everything that a command can be given, and what commands asked."""

    folder: Path
    values: Mapping[str, Sequence[str]]
    asked: list[str] = field(default_factory=list)

    def words(self, command: Any) -> list[list[str]]:
        """The arguments of a command in every plausible form; what it does not need is left out."""
        needed = [one for one in command.params if one.required or one.name in {"subject", "code", "question"}]
        given = [self.values[one.name] for one in needed]
        return [
            [word for one, value in zip(needed, values, strict=True) for word in self.spelt(one, value)]
            for values in product(*given)
        ]

    def spelt(self, parameter: Any, value: str) -> list[str]:
        if parameter.param_type_name == "argument":
            return [value] * (2 if parameter.nargs == -1 else 1)
        return [parameter.opts[0], value]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A base and adapters that ask for code of theirs, where libraries would ask the user whether it may run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QLMM_HOME", str(tmp_path / "home"))
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "llava"} | CODE), "utf-8")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(text_row(number)) for number in range(3)), "utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path), "utf-8")
    recipe = parse_recipe(RECIPE.format(folder=tmp_path), "recipe.yaml").recipe
    parts = {"model": {"id": str(base), "revision": None, "config_sha256": "aa"}}
    of_base = shared_adapter(tmp_path, name="of-base")
    made = manifest(base={"kind": "native", "parts": parts}, recipe=recipe, files=file_hashes(of_base))
    write_manifest(of_base, made)
    own = shared_adapter(tmp_path, name="own")
    (own / ADAPTER_CONFIG).write_text(json.dumps(CODE), "utf-8")
    write_manifest(own, made.model_copy(update={"files": file_hashes(own)}))
    Zoo.make(tmp_path, monkeypatch).add(finished_run(tmp_path))
    adapters, rows = [str(of_base), str(own)], [str(tmp_path / "rows.jsonl")]
    recipes, made_here = [str(tmp_path / "recipe.yaml")], [str(tmp_path / "made")]
    desk = Desk(
        tmp_path,
        {
            "adapter": adapters,
            "adapters": adapters,
            "recipe": recipes,
            "target": [*recipes, str(base), *rows],
            "subject": recipes,
            "prompts": rows,
            "pairs": [str(tmp_path / "pairs.jsonl")],
            "folder": made_here,
            "name": ["mine", "me/x"],
            "names": ["mine"],
            "repo": ["me/x"],
            "question": ["What is this?"],
            "code": ["D005"],
            "to": ["hf"],
            "weights": ["1,1"],
        },
    )
    monkeypatch.setattr("sys.stdin", Terminal(desk.asked))
    monkeypatch.setattr("getpass.getpass", lambda *_, **__: desk.asked.append("getpass") or "")
    return desk


def code_of(monkeypatch: pytest.MonkeyPatch, words: Sequence[str]) -> object:
    """The code that a command ends with."""
    monkeypatch.setattr(sys, "argv", ["qlmm", *words])
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    return 0


def test_no_command_but_chat_reads_stdin(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = commands()
    assert found.keys() >= {("finetune",), ("data", "check"), *TALKS}
    for words in found.keys() - TALKS:
        for given in desk.words(found[words]):
            code = code_of(monkeypatch, [*words, *given])
            said = capsys.readouterr()
            assert desk.asked == [], (words, given)
            assert code in {0, 1, 2}, (words, given, said.err)
            # The command itself ran: its words were understood.
            assert "Usage: " not in said.out + said.err, (words, given)


def test_chat_reads_stdin(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlmm.cli.conversation.Conversation.begin", lambda *_: None)
    assert code_of(monkeypatch, ["chat", desk.values["adapter"][0]]) == 0
    assert desk.asked == ["readline"]
