"""`qlmm verify` and `qlmm merge`: what is printed, in which code they end, and that wrong words are refused at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from qlmm.api import finetune
from qlmm.cli.app import app
from qlmm.cli.commands.merge import shard_bytes
from qlmm.core.errors import QlmmError, UsageError
from qlmm.core.filenames import LOCAL_RECIPE
from tests.runs import TinyRun


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a 4-bit base."""
    run = TinyRun.make(tmp_path_factory.mktemp("run"))
    finetune(run.recipe("base.quantize=nf4", "training.steps=2", "evaluation.answers=0"))
    return run.folder


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def statuses(result: Result) -> dict[str, str]:
    return {check["name"]: check["status"] for check in json.loads(result.stdout)["result"]["checks"]}


@pytest.mark.slow
def test_a_finished_run_is_what_it_says(finished: Path) -> None:
    done = run("verify", finished / "run")
    assert done.exit_code == 0, done.output
    assert done.stdout.count(" ok ") == 6
    assert "is what it says it is" in done.stdout
    told = run("verify", finished / "run" / "adapter", "--json")
    assert told.exit_code == 0
    assert json.loads(told.stdout)["result"]["verified"] is True


@pytest.mark.slow
def test_a_changed_file_fails_and_nothing_is_loaded_from_it(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run" / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "chat_template.jinja").write_text("{{ messages }}")
    done = run("verify", tmp_path / "adapter", "--json")
    assert done.exit_code == 1
    found = statuses(done)
    assert found["files"] == "failed"
    assert found["answers"] == found["tensors"] == "not checked"
    assert "FAILED" in run("verify", tmp_path / "adapter").stdout


@pytest.mark.slow
def test_without_the_base_nothing_is_claimed_about_it(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run" / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / LOCAL_RECIPE).unlink()
    done = run("verify", tmp_path / "adapter", "--json")
    assert done.exit_code == 1
    assert statuses(done) == {
        "files": "ok", "no pickle": "ok", "values": "ok",
        "base": "not checked", "tensors": "not checked", "answers": "not checked",
    }  # fmt: skip
    assert "this is not a proof" in run("verify", tmp_path / "adapter").stdout


@pytest.mark.slow
def test_another_base_under_the_same_configuration_is_found_by_its_answers(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "run" / "adapter" / LOCAL_RECIPE
    path.write_text(path.read_text().replace(str(finished), str(tmp_path)))
    from tests.tiny import tiny_llava, tiny_processor

    tiny_llava(tiny_processor("vicuna"), seed=1).save_pretrained(tmp_path / "base")
    done = run("verify", tmp_path / "run", "--json")
    assert done.exit_code == 1
    found = statuses(done)
    assert found.pop("answers") == "failed"
    assert set(found.values()) == {"ok"}


@pytest.mark.slow
def test_a_merge_says_what_it_cost_and_what_it_made(finished: Path, tmp_path: Path) -> None:
    done = run("merge", finished / "run", tmp_path / "merged", "--shard-size", "1MB")
    assert done.exit_code == 0, done.output
    assert "trained (written)" in done.stdout
    assert "loads with transformers alone" in done.stdout
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    short = run("merge", finished / "run", tmp_path / "half", "--no-measure", "--dtype", "bf16", "--onto", "original")
    assert short.exit_code == 0, short.output
    assert "was not measured" in short.stdout


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("500 MB", 5 * 10**8), ("1.5gib", 3 << 29)])
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert shard_bytes(text) == size


@pytest.mark.parametrize("text", ["", "5", "GB", "-1GB", "0MB", "1 KB", "five GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="U040"):
        shard_bytes(text)


@pytest.mark.parametrize(
    ("words", "code"),
    [(["verify", "nowhere"], "A001"), (["merge", "nowhere", "out"], "A001"), (["verify", "no/adapter"], "A013")],
)
def test_what_is_not_there_is_refused_at_once(
    words: list[str], code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = run(*words).exception
    assert isinstance(found, QlmmError)
    assert found.problems[0].code == code
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--onto", "both"], ["--dtype", "fp8"]])
def test_unknown_words_end_with_2(words: list[str]) -> None:
    assert run("merge", "a", "b", *words).exit_code == 2
