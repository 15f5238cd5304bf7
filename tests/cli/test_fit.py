"""``qlmm fit`` shows the memory of a run by part, and the command that makes it fit; what it cannot do, it says."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qlmm.cli.app import main
from qlmm.recipe.load import load_recipe
from tests.runs import RECIPE, TinyRun

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny")
    TinyRun.make(place)
    (place / "my tiny.yaml").write_text(RECIPE.format(folder=place))
    return place


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, stdout and stderr of ``qlmm fit "my tiny.yaml"``, 80 columns wide."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qlmm", "fit", "my tiny.yaml", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err

    return run


def test_the_parts_are_shown_on_80_columns(run: Run) -> None:
    code, said, _ = run()
    assert code == 0
    for words in ("libraries", "  imported", "frozen weights", "  vision, fp32", "trained weights", "activations"):
        assert f"\n{words} " in said, words
    assert "the longest of its rows" in said
    assert "qlmm finetune" not in said
    assert max(map(len, said.splitlines())) <= 80
    assert not any(line.endswith(" ") for line in said.splitlines())


def test_a_command_that_fits_can_be_pasted(run: Run, folder: Path) -> None:
    code, said, _ = run("training.accumulation=3", "--gpu", "rtx 4090")
    assert code == 0
    assert "4090, 24 GiB, computing in bf16" in said
    words = shlex.split(said.splitlines()[-1])
    chosen = ["training.batch_size=6", "training.accumulation=1"]
    assert words == ["qlmm", "finetune", "my tiny.yaml", "training.accumulation=3", *chosen]
    recipe = load_recipe(folder / words[2], words[3:]).recipe
    assert recipe.training.batch_size * recipe.training.accumulation == 6


def test_what_fits_nothing_is_said_plainly(run: Run) -> None:
    code, said, _ = run("--memory", "800MB")
    assert code == 1
    assert "nothing fits 800MB: the smallest settings take" in said
    assert "too little" in said
    assert "qlmm finetune" not in said


def test_json_has_the_one_envelope(run: Run) -> None:
    code, said, _ = run("--memory", "4GB", "--json")
    found = json.loads(said)
    assert (code, found["command"], found["exit_code"], found["problems"]) == (0, "fit", 0, [])
    facts = found["result"]
    assert facts["fits"] is True
    assert facts["budget_bytes"] == 4 << 30
    assert facts["total_bytes"] == sum(part["bytes"] for part in facts["parts"]) <= facts["budget_bytes"]
    assert shlex.split(facts["command"])[:2] == ["qlmm", "finetune"]
    code, said, _ = run("--memory", "800MB", "--json")
    found = json.loads(said)
    assert (code, found["exit_code"], found["result"]["command"]) == (1, 1, None)
    assert found["result"]["missing_bytes"] > 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--memory", "12 bananas"), "U042", "`12 bananas` is not a size of memory"),
        (("--memory", ""), "U042", "is not a size of memory"),
        (("--gpu", "4091"), "U041", "did you mean `4090`?"),
        (("--gpu", "abacus"), "U041", "known: 3060, 4060 Ti, 4070, 4090, 5090, T4, L4, A10G"),
        (("--gpu", "4090", "--memory", "12GB"), "U043", "exclude each other"),
        (("training.memory=12 bananas",), "R015", "`12 bananas` is not a size of memory"),
    ],
)
def test_what_is_no_budget_is_one_clear_error(run: Run, words: tuple[str, ...], code: str, says: str) -> None:
    ended, said, error = run(*words)
    assert (ended, said) == (2, "")
    assert error.startswith(f"error[{code}]")
    assert error.count("error[") == 1
    assert says in error
