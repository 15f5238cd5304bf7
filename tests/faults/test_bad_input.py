"""Every kind of bad input: one clear error with a way out, exit code 2, nothing started and nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image

from qlmm.cli.app import main
from tests.assembling import image_processor, llama, tower
from tests.faults.bad_inputs import CASES, RECIPE, ROWS, recipe, row
from tests.tiny import tiny_llava, tiny_processor, tiny_tokenizer


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny bases: one native, one without a chat template, a tower and a language model."""
    shelf = tmp_path_factory.mktemp("bases")
    processor = tiny_processor("vicuna")
    model = tiny_llava(processor)
    model.save_pretrained(shelf / "llava")
    processor.save_pretrained(shelf / "llava")
    processor.chat_template = None
    model.save_pretrained(shelf / "speechless")
    processor.save_pretrained(shelf / "speechless")
    tower("clip").save_pretrained(shelf / "clip")
    image_processor("clip").save_pretrained(shelf / "clip")
    tokenizer = tiny_tokenizer()
    llama(len(tokenizer)).save_pretrained(shelf / "llama")
    tokenizer.save_pretrained(shelf / "llama")
    return shelf


@pytest.fixture
def place(tmp_path: Path, bases: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: a good recipe, good rows, good pictures, good bases."""
    folder = tmp_path / "here"
    folder.mkdir()
    for base in bases.iterdir():
        (folder / base.name).symlink_to(base)
    for number in range(ROWS):
        Image.new("RGB", (40 + number, 40), (20 * number, 0, 0)).save(folder / f"{number}.png")
    rows = [json.dumps(row(images=[f"{number}.png"])) for number in range(ROWS)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    (folder / "my.yaml").write_text(RECIPE)
    monkeypatch.setenv("QLMM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(folder)
    return folder


def written(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, by name."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line says about a request that it refuses, without a word on stdout."""
    monkeypatch.setattr(sys, "argv", ["qlmm", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr()
    assert (caught.value.code, said.out) == (2, ""), said.err
    return said.err


@pytest.mark.parametrize("name", CASES)
def test_one_clear_error_and_nothing_written(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    case.spoil(place)
    before = written(place)
    said = refused((*case.words, *case.overrides), monkeypatch, capsys)
    assert said.startswith(f"error[{case.code}]: ")
    assert said.count("error[") == 1
    assert all(part in said for part in case.says), said
    assert f"\nhelp: {case.helps}" in said or case.helps in said.partition("\nhelp: ")[2], said
    assert "\nhelp: " in said
    assert "Traceback" not in said
    assert written(place) == before
    assert not (place.parent / "home").exists()


def test_all_problems_of_a_recipe_are_told_at_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe("r: 4", "rank: 4")(place)
    said = refused(("finetune", "my.yaml", "training.steps=0", "training.bach_size=1"), monkeypatch, capsys)
    assert said.count("error[") == 3


def test_all_bad_rows_are_told_at_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(), row(answer=None), row(answer=""), row(images=["../x.png"])]
    (place / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows) + "{\n")
    said = refused(("finetune", "my.yaml"), monkeypatch, capsys)
    assert [number for number in range(1, 6) if f"--> rows.jsonl:{number}" in said] == [2, 3, 4, 5]
    assert not (place / "run").exists()


def test_a_directory_that_another_run_writes_to_is_left_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "run").mkdir()
    with FileLock(place / "run" / "run.lock"):
        before = written(place)
        monkeypatch.setattr("qlmm.cli.output.console.Out.screen", lambda self, screen: None)
        said = refused(("finetune", "my.yaml"), monkeypatch, capsys)
        assert written(place) == before
    assert said.startswith("error[O002]: output.dir: run is in use by")
    assert "help: wait for that run to end, or name another output.dir" in said


def test_a_run_that_would_fill_the_disk_is_not_started(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("qlmm.training.plan.free_bytes", lambda path: 1 << 20)
    said = refused(("finetune", "my.yaml"), monkeypatch, capsys)
    assert said.startswith("error[O003]: not enough room for run: 48 MiB needed, 1 MiB free")
    assert "help: name another output.dir, or keep fewer checkpoints with training.keep=1" in said
    assert not (place / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that the recipe demands")
def test_a_recipe_that_demands_a_gpu_is_refused_without_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(("finetune", "my.yaml", "training.device=cuda"), monkeypatch, capsys)
    assert said.startswith("error[M001]: training.device: it is cuda, but PyTorch sees no CUDA GPU here")
    assert "help: run `qlmm doctor`" in said
    assert not (place / "run").exists()


@pytest.mark.parametrize("words", [("training.steps=many",), ("data.sources.0.path=rowz.jsonl",)])
def test_a_real_command_ends_with_2_and_says_nothing_but_the_error(words: tuple[str, ...], place: Path) -> None:
    command = [sys.executable, "-m", "qlmm", "finetune", "my.yaml", *words]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error[")
    assert done.stderr.count("error[") == 1
    assert "Traceback" not in done.stderr
    assert not (place / "run").exists()
