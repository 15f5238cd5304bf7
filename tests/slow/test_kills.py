"""SIGKILL at random moments loses nothing: the run ends with the very adapter of a run that nobody touched.

`make stress` kills more often, and prints what it did as a table.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qlmm.api import finetune
from qlmm.core.errors import QlmmError
from qlmm.core.events import Event
from qlmm.recipe.load import LoadedRecipe
from tests.runs import TinyRun, pair_row

pytestmark = pytest.mark.slow

# For each kind of run.
KILLS = int(os.environ.get("QLMM_KILLS", "5"))
LONG = ("training.steps=60", "evaluation.every=20")


def recipe(folder: Path, objective: str, workers: int) -> LoadedRecipe:
    source = "rows" if objective == "sft" else "pairs"
    keys = (
        f"training.objective={objective}",
        f"training.workers={workers}",
        f"data.sources.0.path={folder}/{source}.jsonl",
    )
    return TinyRun(folder).recipe(*LONG, *keys)


def made(folder: Path) -> Path:
    TinyRun.make(folder)
    pairs = [pair_row(folder, number, picture=number % 4 != 3) for number in range(16)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    return folder


def _run_in_child(folder: Path, objective: str, workers: int, told: multiprocessing.connection.Connection) -> None:
    def tell(event: Event) -> None:
        told.send(type(event).__name__)

    try:
        finetune(recipe(folder, objective, workers), listener=tell)
    except QlmmError as error:
        told.send(f"error: {error}")
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_random_kills_lose_nothing(tmp_path: Path, objective: str, workers: int) -> None:
    for name in ("untouched", "killed"):
        (tmp_path / name).mkdir()
    quiet, folder = made(tmp_path / "untouched"), made(tmp_path / "killed")
    finetune(recipe(quiet, objective, workers))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["qlmm.api", "tests.runs", "tests.slow.test_kills"])
    seed = 20 + workers
    chance, begun = random.Random(seed), time.monotonic()
    for kill in range(KILLS + 1):
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=_run_in_child, args=(folder, objective, workers, send))
        child.start()
        send.close()
        if kill < KILLS:
            # Wait for a sign of life, so that the kill falls into the run and not into its start.
            _heard(receive, events=chance.randrange(1, 6))
            time.sleep(chance.uniform(0.0, 0.4))
            child.kill()
        child.join(timeout=300)
        assert child.exitcode == (0 if kill == KILLS else -signal.SIGKILL), (kill, _rest(receive))
    one, other = (_adapter(place / "run") for place in (folder, quiet))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    print(f"| {objective} | {workers} | {KILLS} | 0 | {seed} | {time.monotonic() - begun:.0f} s |")


def _adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def _heard(receive: multiprocessing.connection.Connection, *, events: int) -> None:
    try:
        for _ in range(events):
            if not receive.poll(120):
                return
            receive.recv()
    except EOFError:
        return


def _rest(receive: multiprocessing.connection.Connection) -> list[str]:
    said = []
    try:
        while receive.poll(0):
            said.append(receive.recv())
    except EOFError:
        pass
    return said
