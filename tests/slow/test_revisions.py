"""A base on the Hub is known by its commit: what a branch points to moves, an adapter's base does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from qlmm import api
from qlmm.api import finetune, load
from qlmm.artifacts.adapter.load import check_base
from qlmm.artifacts.adapter.manifest import read_manifest, write_manifest
from qlmm.artifacts.adapter.verify import verify
from qlmm.artifacts.export.export import Wishes, export
from qlmm.artifacts.merge.merge import Settings, merge
from qlmm.core.errors import ModelError, UsageError
from qlmm.model.loading.base import Base
from tests.runs import TinyRun
from tests.tiny import tiny_llava, tiny_processor

pytestmark = pytest.mark.slow

FIRST, SECOND = "c" * 40, "d" * 40


class Cache:
    """A Hub cache that holds one model, at two commits with other weights under one configuration."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.model = folder / "models--me--tiny"
        shutil.copytree(base, self.model / "snapshots" / FIRST)
        shutil.copytree(base, self.model / "snapshots" / SECOND)
        tiny_llava(tiny_processor("vicuna"), seed=7).save_pretrained(folder / "other")
        shutil.copy(folder / "other" / "model.safetensors", self.model / "snapshots" / SECOND)
        (self.model / "refs").mkdir()
        self.main(FIRST)

    def main(self, commit: str) -> None:
        (self.model / "refs" / "main").write_text(commit)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TinyRun, Cache]:
    run = TinyRun.make(tmp_path / "tiny")
    cache = Cache(tmp_path / "cache", run.folder / "base")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # The process that reads the adapter back looks there, too.
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    finetune(run.recipe("base.model=me/tiny", "adapter.connector=frozen", "training.steps=2", "evaluation.answers=0"))
    return run, cache


def test_a_run_records_the_commit_and_everything_after_it_keeps_to_it(
    trained: tuple[TinyRun, Cache], tmp_path: Path
) -> None:
    run, cache = trained
    adapter = run.folder / "run" / "adapter"
    manifest = read_manifest(adapter)
    assert manifest.base.parts["model"].id == "me/tiny"
    assert manifest.base.parts["model"].revision == FIRST
    assert manifest.recipe.base.model == f"me/tiny@{FIRST}"
    peft = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    assert (peft["base_model_name_or_path"], peft["revision"]) == ("me/tiny", FIRST)

    cache.main(SECOND)
    assert verify(adapter).holds
    merged = merge(str(adapter), tmp_path / "merged", Settings())
    assert merged.error is not None
    assert merged.error.ways[0].largest < 1e-4
    done = export(str(adapter), "vllm", tmp_path / "served", Wishes())
    assert f"--revision {FIRST}" in done.commands[0]
    assert load(adapter).manifest.recipe.base == manifest.recipe.base


def test_another_commit_is_another_base(trained: tuple[TinyRun, Cache]) -> None:
    run, cache = trained
    adapter = run.folder / "run" / "adapter"
    start = f"adapter.start_from={adapter}"
    more = ("base.model=me/tiny", "adapter.connector=frozen", "training.steps=2", "evaluation.answers=0", start)
    finetune(run.recipe(*more, f"output.dir={run.folder}/same"))
    cache.main(SECOND)
    with pytest.raises(UsageError, match="M053") as caught:
        finetune(run.recipe(*more, f"output.dir={run.folder}/other"))
    assert FIRST in str(caught.value)
    assert SECOND in str(caught.value)
    # An adapter whose manifest says where it started, but whose recipe follows the branch.
    manifest = read_manifest(adapter)
    loose = manifest.recipe.base.model_copy(update={"model": "me/tiny"})
    write_manifest(adapter, manifest.model_copy(update={"recipe": manifest.recipe.model_copy(update={"base": loose})}))
    with pytest.raises(ModelError, match=r"(?s)A005.*--revision"):
        check_base(read_manifest(adapter), Base.resolve(loose), commit=True)
    assert not verify(adapter).holds


def test_a_branch_that_moves_while_the_run_goes_on_changes_nothing(
    trained: tuple[TinyRun, Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, cache = trained
    honest = api.train

    def moving(*args: Any, **options: Any) -> Any:
        ended = honest(*args, **options)
        cache.main(SECOND)
        return ended

    monkeypatch.setattr(api, "train", moving)
    done = finetune(
        run.recipe("base.model=me/tiny", "training.steps=2", "evaluation.answers=0", f"output.dir={run.folder}/other")
    )
    assert done.status == "finished"
    manifest = read_manifest(run.folder / "other" / "adapter")
    assert manifest.base.parts["model"].revision == FIRST
    assert manifest.recipe.base.model == f"me/tiny@{FIRST}"


def test_folders_have_no_commit(trained: tuple[TinyRun, Cache]) -> None:
    run, _ = trained
    base = Base.resolve(run.recipe().recipe.base)
    assert base.identity.parts["model"].revision is None
    assert base.pinned() == base.section
