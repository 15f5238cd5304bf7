"""An adapter worth sharing, without a run: real formats, invented facts, and paths of a machine in its papers.

Usage: ``folder = shared_adapter(tmp_path)``
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import _http, close_session
from PIL import Image
from safetensors.torch import save_file

from qlmm.artifacts.adapter.folder import file_hashes
from qlmm.artifacts.adapter.manifest import Manifest, write_manifest
from qlmm.artifacts.cards.adapter_card import card, picture_name
from qlmm.artifacts.hub.package import pack
from qlmm.artifacts.hub.transfer import Pushed, push
from qlmm.core.errors import QlmmError
from qlmm.core.filenames import LOCAL_RECIPE
from qlmm.proof.records import Answer, Proof
from qlmm.recipe.load import parse_recipe
from tests.hub import TOKEN, Hub, Repo
from tests.run_facts import PROOF
from tests.unit.artifacts.adapters import RECIPE, learned, manifest

COMMIT = "0123456789abcdef" * 2 + "01234567"
# A place nobody has, so that it can be looked for in everything that is sent.
PRIVATE = "/somewhere/secret-project"
REPO = "me/owl"


def picture(shade: int) -> bytes:
    """A small PNG."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def local_manifest(**changes: Any) -> Manifest:
    """A manifest with local paths where a run has them, on a base of the Hub that is pinned to a commit."""
    base = f"model: some/llava@{COMMIT}"
    recipe = parse_recipe(RECIPE.format(base=base), "r.yaml", [f"output.dir={PRIVATE}/run"]).recipe
    source = recipe.data.sources[0].model_copy(update={"path": f"{PRIVATE}/rows.jsonl"})
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"sources": (source,)})})
    part = {"id": f"some/llava@{COMMIT}", "revision": COMMIT, "config_sha256": "aa"}
    data = learned(f"{PRIVATE}/rows.jsonl", kept=1234)
    return manifest(base={"kind": "native", "parts": {"model": part}}, recipe=recipe, data=data, **changes)


def shared_adapter(parent: Path, proof: Proof = PROOF, name: str = "adapter", **changes: Any) -> Path:
    """A folder as a run leaves it: weights, papers, pictures, card, manifest."""
    folder = parent / name
    (folder / "held-out").mkdir(parents=True)
    save_file({"lora_A": torch.arange(4096.0)}, folder / "adapter_model.safetensors")
    config = {"base_model_name_or_path": "some/llava", "revision": COMMIT}
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    (folder / "tokenizer.json").write_text(json.dumps({"vocab": {"0" * 40: 1}}), "utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}", "utf-8")
    (folder / "probe.json").write_text("{}", "utf-8")
    said = [Answer(picture(shade), "what | is *this* ?", "red", "a <b>cat</b>", "red") for shade in (10, 200)]
    for number, one in enumerate(said, 1):
        (folder / picture_name(number)).write_bytes(one.picture)
    made = local_manifest(files=file_hashes(folder), proof=proof, **changes)
    write_manifest(folder, made)
    (folder / "README.md").write_text(card(made, proof, said), "utf-8")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sendable(folder: Path) -> dict[str, bytes]:
    """Every file of an adapter but the one with paths of this machine, by name."""
    return {name: content for name, content in contents(folder).items() if name != LOCAL_RECIPE}


def pushed(folder: Path, repo: str = REPO, **options: Any) -> Pushed:
    """A push as it stands."""
    return push(pack(folder, repo, unproven=False), **options)


def refusal(act: Callable[[], object]) -> tuple[str, str]:
    """Code and whole text of the one refusal that an act ends in; it always says what to do."""
    with pytest.raises(QlmmError) as caught:
        act()
    (problem,) = caught.value.problems
    assert problem.help
    assert TOKEN not in str(caught.value)
    return problem.code, f"{problem.message} | {problem.help}"


def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been waited, by the client and by qlmm."""
    slept: list[float] = []
    monkeypatch.setattr("qlmm.artifacts.hub.connection.time", SimpleNamespace(sleep=slept.append))
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=slept.append))
    monkeypatch.setattr(huggingface_hub.file_download, "time", SimpleNamespace(sleep=slept.append))
    return slept


def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub of its own, that the client knows, with a base whose licence it states."""
    with Hub().running() as one:
        one.repos["some/llava"] = Repo(card={"license": "apache-2.0"})
        settings = {
            "ENDPOINT": one.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": one.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": False,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.chdir(tmp_path)
        yield one
        close_session()
