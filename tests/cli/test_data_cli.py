"""``qlmm data check`` lists every problem and leaves with 2; ``qlmm data show`` shows the mask."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from PIL import Image

from qlmm.cli.commands.data import check, show
from qlmm.core.errors import DataError, ModelError, UsageError
from tests.tiny import tiny_processor

RECIPE = """\
version: 1
base: {{model: some/llava, chat_template: owl}}
data:
  sources: [{{path: "{rows}"}}]
  max_length: 60
output: {{dir: "{folder}/run"}}
"""


def rows(folder: Path, *more: Any) -> Path:
    Image.new("RGB", (40, 30), "red").save(folder / "cat.png")
    good = {
        "image": "cat.png",
        "conversations": [{"from": "human", "value": "What <|im_end|>?"}, {"from": "gpt", "value": "A cat."}],
    }
    path = folder / "rows.jsonl"
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in [good, *more]))
    return path


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from qlmm.model.loading.base import Base, NativeBase

    def resolve(section: Any) -> Base:
        unread: Any = SimpleNamespace(is_encoder_decoder=False)
        base = NativeBase(section, unread, {}, unread)
        vars(base)["published_processor"] = tiny_processor(section.chat_template)
        return base

    monkeypatch.setattr(Base, "resolve", resolve)
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.format(rows=rows(tmp_path), folder=tmp_path))
    return path


def test_a_clean_file_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows(tmp_path)
    check(str(path))
    said = capsys.readouterr().out
    assert f"{path} (llava): 1 rows, 1 usable, 0 bad, 0 without a picture\npictures: 1 decoded\n" in said
    assert said.endswith("no problems, 1 warning\n")


def test_every_problem_is_listed_with_its_line_and_the_exit_code_is_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rows(tmp_path, *["{"] * 30, {"conversations": []}, {"image": "none.png", "conversations": []})
    with pytest.raises(typer.Exit) as left:
        check(str(path))
    assert left.value.exit_code == 2
    said = capsys.readouterr().out
    assert all(f"--> {path}:{line}" in said for line in range(2, 34))
    assert "no answer: the row has no assistant turn" in said
    assert said.endswith("32 problems, 1 warning\n")


def test_all_problems_are_listed_also_where_no_row_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"x"\n' * 30)
    with pytest.raises(typer.Exit) as left:
        check(str(path))
    assert left.value.exit_code == 2
    said = capsys.readouterr().out
    assert "nothing to learn from" in said
    assert said.count("broken JSON: Expecting ':' delimiter") == 30
    assert f'  --> {path}:30:5\n   |\n30 | {{"x"\n   |     ^\n' in said


def test_what_is_not_read_and_what_stands_in_texts_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blind = {"pic": "cat.png", "conversations": [{"from": "human", "value": "<image>Q"}, {"from": "gpt", "value": "A"}]}
    check(str(path := rows(tmp_path, blind, blind)))
    told = capsys.readouterr().out
    assert f"{path}: not used: `pic` (2 rows)\n" in told
    assert f"warning: markers without a picture: 2 rows (`<image>`), first {path}:2;" in told
    assert f"warning: marks of a chat template in texts: 1 row (`<|im_end|>`), first {path}:1;" in told
    assert told.endswith("no problems, 2 warnings\n")


def test_secrets_in_broken_lines_are_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = "hf_" + "a1B2" * 9
    with pytest.raises(typer.Exit):
        check(str(rows(tmp_path, f'{{"key": "{secret}" oops}}')))
    assert secret not in capsys.readouterr().out


def test_a_recipe_adds_tokens(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(str(recipe))
    said = capsys.readouterr().out
    assert re.search(r"tokens per row: median (\d+), p95 \1, max \1; visual \d+%", said)
    assert "learned per row: median" in said
    check(str(recipe), ["data.max_length=10"])
    assert "left out: 1 rows" in capsys.readouterr().out


def test_without_the_base_rows_are_checked_all_the_same(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qlmm.model.loading.base import Base

    def fail(base: object) -> None:
        raise ModelError.one("M003", "some/llava is not within reach")

    monkeypatch.setattr(Base, "resolve", fail)
    check(str(recipe))
    said = capsys.readouterr()
    assert "1 usable" in said.out
    assert "tokens were not counted: some/llava is not within reach" in said.err


def test_options_that_do_not_belong_together_are_refused(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="belong to a file"):
        check(str(recipe), image_root=str(tmp_path))
    with pytest.raises(UsageError, match="changes a recipe"):
        check(str(tmp_path / "rows.jsonl"), ["data.max_length=10"])
    with pytest.raises(UsageError, match="no format is called `No Such`"):
        check(str(tmp_path / "rows.jsonl"), format="No Such")


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        check(str(tmp_path / "none.jsonl"))


MASKED = "<s>\nHuman: <image>×4\nHuman: What <|im_end|>?\nAI: {}A cat.</s>{}\n"


@pytest.mark.parametrize(("setting", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_without_colour_what_is_learned_stands_in_brackets(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: str, value: str
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv(setting, value)
    show(str(recipe))
    said = capsys.readouterr().out
    assert "row 1 of 1" in said
    assert "picture cat.png: 40 x 30, 4 tokens" in said
    assert said.endswith(MASKED.format("⟦", "⟧"))
    assert "\x1b" not in said


def test_in_colour_what_is_learned_is_green(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    show(str(recipe))
    said = capsys.readouterr().out
    assert "\x1b[1;32mA cat.</s>\x1b[0m" in said
    assert "⟦" not in said
    assert re.sub(r"\x1b\[[0-9;]*m", "", said).endswith(MASKED.format("", ""))


def test_a_row_that_does_not_exist_is_refused(recipe: Path) -> None:
    with pytest.raises(UsageError, match="there is no row 2") as caught:
        show(str(recipe), row=2)
    assert "rows are 1 to 1" in str(caught.value)


def test_checking_a_file_needs_neither_torch_nor_a_terminal_that_knows_unicode(tmp_path: Path) -> None:
    code = (
        "import sys, typer\nfrom qlmm.cli.commands.data import check\n"
        "try:\n    check(sys.argv[1])\nexcept typer.Exit as left:\n"
        "    sys.exit(left.exit_code if {'torch', 'transformers'}.isdisjoint(sys.modules) else 99)"
    )
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path.cwd())}
    path = rows(tmp_path, {"Ä 猫": "cat.png"})
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "no `conversations`; the row has `? ?`" in done.stdout
    assert done.stderr == ""


PAIR = {"question": "What?", "chosen": "A cat.", "rejected": "A dog on a mat.", "image": "cat.png"}


def pairs(folder: Path, *more: Any) -> Path:
    path = rows(folder)
    path.write_text("".join(json.dumps(one) + "\n" for one in [PAIR, *more]))
    return path


def test_preferences_are_found_and_counted_and_their_problems_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(str(pairs(tmp_path)))
    said = capsys.readouterr().out
    assert "(rlaif_v): 1 rows, 1 usable, 0 bad" in said
    assert "pairs: 1, each with a chosen and a rejected answer" in said
    path = pairs(tmp_path, {**PAIR, "rejected": "A cat. "}, {**PAIR, "chosen": ""}, {"question": "Q"}, PAIR)
    with pytest.raises(typer.Exit):
        check(str(path))
    said = capsys.readouterr().out
    assert all(f"--> {path}:{line}" in said for line in (2, 3, 4))
    assert "the chosen and the rejected answer are the same" in said
    assert "the chosen answer is empty" in said
    assert "no `chosen`; the row has `question`" in said
    assert "pairs: 2," in said
    assert "repeated: 1 rows" in said
    assert said.endswith("3 problems\n")


def test_a_recipe_for_conversations_refuses_preferences(recipe: Path, tmp_path: Path) -> None:
    pairs(tmp_path)
    for command in (check, show):
        with pytest.raises(DataError, match=r"training\.objective: dpo"):
            command(str(recipe))


def test_a_preference_is_shown_with_its_prompt_once(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    pairs(tmp_path)
    show(str(recipe), ["training.objective=dpo"])
    said = capsys.readouterr().out
    assert "picture cat.png: 40 x 30, 4 tokens" in said
    assert re.search(
        r"tokens, chosen: \d+ \(4 visual, \d+ learned\)\ntokens, rejected: \d+ \(4 visual, \d+ learned\)", said
    )
    assert said.endswith(
        "<s>\nHuman: <image>×4\nHuman: What?\nAI: \n\nchosen:\n⟦A cat.</s>⟧\n\nrejected:\n⟦A dog on a mat.</s>⟧\n"
    )


def test_tokens_of_preferences_are_counted(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs(tmp_path)
    check(str(recipe), ["training.objective=dpo"])
    assert "tokens per row: median" in capsys.readouterr().out
    check(str(recipe), ["training.objective=dpo", "data.max_length=10"])
    assert "rows.jsonl:1: chosen answer: 4 visual + " in capsys.readouterr().out


JUDGED = {"prompt": "What?", "completion": "A cat.", "label": True, "image": "cat.png"}


def feedback(folder: Path, *more: Any) -> Path:
    path = rows(folder)
    path.write_text("".join(json.dumps(one) + "\n" for one in [JUDGED, *more]))
    return path


def test_judged_answers_are_found_and_counted_and_their_problems_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poor = {**JUDGED, "completion": "A dog.", "label": False}
    bad = [{**JUDGED, "label": "no"}, {"prompt": "Q", "completion": "A"}, {**JUDGED, "completion": ""}]
    reply = {"role": "assistant", "content": "A"}
    path = feedback(tmp_path, poor, *bad, {**JUDGED, "prompt": [{"role": "user", "content": "Q"}, reply]}, JUDGED)
    with pytest.raises(typer.Exit):
        check(str(path))
    said = capsys.readouterr().out
    assert "(feedback): 7 rows, 3 usable, 4 bad" in said
    assert "answers: 2 desirable, 1 not desirable" in said
    assert all(f"--> {path}:{line}" in said for line in (3, 4, 5, 6))
    assert "`label` is str, neither true nor false" in said
    assert "no `label`; the row has `prompt`, `completion`" in said
    assert "empty answer (turn 2)" in said
    assert "turn 3 is `assistant` where `user` belongs" in said
    assert "repeated: 1 rows" in said


def test_a_judged_answer_is_shown_with_its_verdict(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    feedback(tmp_path, {**JUDGED, "label": False})
    show(str(recipe), ["training.objective=kto"], row=2)
    said = capsys.readouterr().out
    assert "the answer is not desirable\ntokens: " in said
    assert said.endswith("Human: What?\nAI: ⟦A cat.</s>⟧\n")
    show(str(recipe), ["training.objective=kto"])
    assert "the answer is desirable" in capsys.readouterr().out


def test_tokens_of_judged_answers_are_counted(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    feedback(tmp_path)
    check(str(recipe), ["training.objective=kto"])
    assert "tokens per row: median" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"training\.objective: kto"):
        check(str(recipe), ["training.objective=dpo"])


def test_pairs_are_taken_where_judged_answers_are_wanted(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs(tmp_path)
    check(str(recipe), ["training.objective=kto"])
    assert "pairs: 1, each with a chosen and a rejected answer" in capsys.readouterr().out
