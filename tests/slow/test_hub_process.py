"""Push and pull as a user runs them: processes of their own, told of the Hub by nothing but their environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from qlmm.core.filenames import CARD
from tests.hub import READER, TOKEN, Hub, Repo
from tests.sharing import REPO, contents, sendable, shared_adapter

SECONDS = 120


def run(hub: Hub, folder: Path, token: str, *words: str) -> subprocess.CompletedProcess[str]:
    """One command, its environment free of whatever else the Hub's client listens to."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    told = {"HF_ENDPOINT": hub.address, "HF_TOKEN": token, "HF_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "qlmm", *words]
    return subprocess.run(
        command, cwd=folder, env=ours | told, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def test_large_files_go_both_ways_without_xet(tmp_path: Path) -> None:
    adapter = shared_adapter(tmp_path)
    with Hub().running() as hub:
        hub.repos["some/llava"] = Repo()
        sent = run(hub, tmp_path, TOKEN, "push", str(adapter), REPO)
        assert (sent.returncode, sent.stdout.splitlines()[:1]) == (0, [f"{hub.address}/{REPO}"]), sent.stderr
        fetched = run(hub, tmp_path, TOKEN, "pull", REPO, "here")
        assert (fetched.returncode, fetched.stdout) == (0, "here\n"), fetched.stderr
        assert hub.sent
        assert hub.asked("xet") == []
    there, before = contents(tmp_path / "here"), sendable(adapter)
    assert {name for name in before if there[name] != before[name]} == {CARD}


def test_a_refusal_is_told_by_its_name(tmp_path: Path) -> None:
    adapter = shared_adapter(tmp_path)
    with Hub().running() as hub:
        hub.repos["some/llava"], hub.repos[REPO] = Repo(), Repo()
        refused = run(hub, tmp_path, READER, "push", str(adapter), REPO, "--public")
    assert refused.returncode != 0
    assert "H003" in refused.stderr
    assert "your token has no right" in refused.stderr
