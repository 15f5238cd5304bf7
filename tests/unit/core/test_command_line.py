"""Command lines that are printed can be pasted: nothing in them is run, split or lost."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import qlmm
from qlmm.core.command_line import line, ours

HOSTILE = ["$(touch planted)", "`touch planted`", "a b", "it's", '"', "; touch planted", "* ?", "a\nb", "\\", "é …", ""]
# A command with words behind it, up to the value that is put in.
_BY_HAND = re.compile(r"""(?<![<(])\b(?:qlmm|vllm|ollama|llama)[ -][a-z-]+(?: [^\s`]+)* ["']?$""")


@pytest.mark.parametrize("word", HOSTILE)
def test_a_shell_gives_every_word_back_and_runs_none(word: str, tmp_path: Path) -> None:
    pasted = line("printf", "%s\\0", word, "end")
    done = subprocess.run(["/bin/sh", "-c", pasted], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.decode() == f"{word}\0end\0"
    assert not list(tmp_path.iterdir())


def test_an_argument_that_begins_with_a_dash_is_not_an_option() -> None:
    assert ours("finetune", "mine.yaml", "training.steps=2", dry_run=True) == (
        "qlmm finetune mine.yaml --dry-run training.steps=2"
    )
    assert ours("chat", "-x") == "qlmm chat -- -x"
    words = shlex.split(ours("ask", Path("runs/a b/adapter"), "--what is this?", image=Path("x y.png")))
    assert words == ["qlmm", "ask", "runs/a b/adapter", "--image", "x y.png", "--", "--what is this?"]
    assert ours("data show", "mine", row=1) == "qlmm data show mine --row 1"


def test_no_command_is_put_together_by_hand() -> None:
    assert _BY_HAND.search("ask it with: qlmm ask ")
    found = []
    for path in sorted(Path(qlmm.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                before = [one.value for one in node.values[:-1] if isinstance(one, ast.Constant)]
                found += [f"{path.name}: {text}" for text in before if _BY_HAND.search(str(text))]
    assert not found
