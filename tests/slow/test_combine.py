"""Adapters made into one: the arithmetic is what it says, and the result is an adapter like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from qlmm.api import finetune, load
from qlmm.artifacts.adapter import file_hashes
from qlmm.artifacts.combine import Settings, combine
from qlmm.artifacts.manifest import MANIFEST, read_manifest, write_manifest
from qlmm.artifacts.probe import probe_rows
from qlmm.artifacts.verify import verify
from qlmm.cli.app import app
from qlmm.core.errors import UsageError
from tests.runs import TinyRun
from tests.slow.test_merge import CASES, assembled

pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Two runs on one base: `a` and `b`."""
    run = TinyRun.make(tmp_path_factory.mktemp("combine"))
    for name, steps in (("a", 3), ("b", 5)):
        finetune(run.recipe(f"training.steps={steps}", "evaluation.rows=2", f"output.dir={run.folder}/{name}"))
    return run


@pytest.fixture
def both(tiny: TinyRun, tmp_path: Path) -> Callable[..., Path]:
    def make(method: Any, weights: tuple[float, ...], names: str = "ab", **options: Any) -> Path:
        targets = [str(tiny.folder / name) for name in names]
        return combine(targets, tmp_path / "both", Settings(method, weights, **options)).folder

    return make


def logits(folder: Path, rows: Path) -> torch.Tensor:
    loaded = load(folder)
    batches = [loaded.encoder.batch([row]) for row in probe_rows(rows)]
    with torch.no_grad():
        found = [loaded.model(**{k: v for k, v in one.items() if k != "labels"}).logits[0, -1] for one in batches]
    return torch.stack(found)


def delta(weights: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """What LoRA adds to each layer."""
    layers = {name.partition(".lora_A")[0] for name in weights if ".lora_A" in name}
    return {one: scale * weights[f"{one}.lora_B.weight"] @ weights[f"{one}.lora_A.weight"] for one in layers}


@pytest.mark.parametrize(("weights", "names"), [((1.0, 0.0), "ab"), ((0.5, 0.5), "aa")])
def test_all_of_one_adapter_is_that_adapter(
    weights: tuple[float, ...], names: str, both: Callable[..., Path], tiny: TinyRun
) -> None:
    source = tiny.folder / "a" / "adapter"
    folder = both("linear", weights, names)
    assert torch.allclose(logits(folder, source), logits(source, source), atol=1e-5)
    whole = [name for name in load_file(folder / WEIGHTS) if ".lora_" not in name]
    assert whole
    assert all(torch.equal(load_file(folder / WEIGHTS)[name], load_file(source / WEIGHTS)[name]) for name in whole)


def test_cat_adds_the_updates_of_lora_exactly(both: Callable[..., Path], tiny: TinyRun) -> None:
    made = load_file(both("cat", (0.7, -0.2)) / WEIGHTS)
    a, b = (load_file(tiny.folder / name / "adapter" / WEIGHTS) for name in "ab")
    scale = 32 / 4
    ours, first, second = delta(made, 1.0), delta(a, scale), delta(b, scale)
    assert ours.keys() == first.keys()
    assert all(torch.allclose(ours[one], 0.7 * first[one] - 0.2 * second[one], atol=1e-6) for one in ours)
    base = dict(_base(tiny).state_dict())
    for name in (name for name in made if ".lora_" not in name):
        start = base[name.removeprefix("base_model.model.")]
        wanted = start + 0.7 * (a[name] - start) - 0.2 * (b[name] - start)
        assert torch.allclose(made[name], wanted, atol=1e-6)


def _base(tiny: TinyRun) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(tiny.folder / "base", dtype=torch.float32)


def test_svd_keeps_the_rank(both: Callable[..., Path]) -> None:
    folder = both("svd", (0.5, 0.5))
    assert json.loads((folder / "adapter_config.json").read_text("utf-8"))["r"] == 4


@pytest.mark.parametrize("method", ["cat", "ties", "dare_ties", "dare_linear"])
def test_what_comes_out_verifies_and_says_what_it_is_made_of(method: str, both: Callable[..., Path]) -> None:
    folder = both(method, (0.5, 0.5), seed=3)
    assert verify(str(folder)).holds
    made = read_manifest(folder)
    assert made.proof is None
    assert made.combined is not None
    assert (made.combined["method"], made.combined["weights"]) == (method, [0.5, 0.5])
    assert [source["steps"] for source in made.combined["sources"]] == [3, 5]
    assert method in (folder / "README.md").read_text("utf-8")


def test_the_command_measures_all_three_on_the_same_rows(tiny: TinyRun, tmp_path: Path) -> None:
    sources = [str(tiny.folder / "a"), str(tiny.folder / "b")]
    before = file_hashes(tiny.folder / "a")
    words = ["combine", *sources, "--weights", "0.5,0.5", "--out", str(tmp_path / "both"), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.exception
    said = json.loads(done.stdout)
    assert list(said["losses"]) == [*sources, "combined"]
    assert read_manifest(tmp_path / "both").combined["losses"] == said["losses"]  # type: ignore[index]  # just made
    assert file_hashes(tiny.folder / "a") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both"]


@pytest.mark.parametrize(
    ("weights", "names", "method", "code"),
    [
        ((1.0,), "ab", "linear", "K002"),
        ((1.0,), "a", "linear", "K001"),
        ((1.0, 1.0), "ab", "sum", "K003"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    weights: tuple[float, ...], names: str, method: Any, code: str, both: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=code):
        both(method, weights, names)
    assert list(tmp_path.iterdir()) == []


def edited(source: Path, folder: Path, change: Callable[[Any], Any]) -> Path:
    """A copy of an adapter with another manifest."""
    shutil.copytree(source, folder)
    changed = change(read_manifest(folder))
    files = file_hashes(folder, without=frozenset({MANIFEST, "README.md"}))
    write_manifest(folder, changed.model_copy(update={"files": files}))
    return folder


def _adapter(manifest: Any, **changes: Any) -> Any:
    section = manifest.recipe.adapter.model_copy(update=changes)
    return manifest.model_copy(update={"recipe": manifest.recipe.model_copy(update={"adapter": section})})


def _revision(manifest: Any) -> Any:
    parts = {role: {**facts, "revision": "0" * 40} for role, facts in manifest.base["parts"].items()}
    return manifest.model_copy(update={"base": {**manifest.base, "parts": parts}})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda manifest: manifest.model_copy(update={"frozen_sha256": "0" * 64}), "K004"),
        (_revision, "K004"),
        (lambda manifest: _adapter(manifest, variant="dora"), "K005"),
        (lambda manifest: _adapter(manifest, r=8), "K007"),
    ],
    ids=["weights", "revision", "dora", "rank"],
)
def test_adapters_that_do_not_belong_together_are_refused(
    change: Callable[[Any], Any], code: str, tiny: TinyRun, tmp_path: Path
) -> None:
    other = edited(tiny.folder / "b" / "adapter", tmp_path / "other", change)
    with pytest.raises(UsageError, match=code):
        combine([str(tiny.folder / "a"), str(other)], tmp_path / "both", Settings("linear", (0.5, 0.5)))
    assert not (tmp_path / "both").exists()


def test_other_layers_and_other_templates_are_refused(tiny: TinyRun, tmp_path: Path) -> None:
    source = tiny.folder / "b" / "adapter"
    fewer = tmp_path / "fewer"
    shutil.copytree(source, fewer)
    weights = load_file(fewer / WEIGHTS)
    weights.pop(next(name for name in weights if ".lora_A" in name))
    save_file(weights, fewer / WEIGHTS)
    template = tmp_path / "template"
    shutil.copytree(source, template)
    (template / "chat_template.jinja").write_text("{{ messages }}")
    for folder, code in ((fewer, "K006"), (template, "K008")):
        files = file_hashes(folder, without=frozenset({MANIFEST, "README.md"}))
        write_manifest(folder, read_manifest(folder).model_copy(update={"files": files}))
        with pytest.raises(UsageError, match=code):
            combine([str(tiny.folder / "a"), str(folder)], tmp_path / "both", Settings("linear", (0.5, 0.5)))


def test_connectors_of_assembled_bases_are_combined(tmp_path: Path) -> None:
    targets = []
    for steps in (1, 2):
        name = f"output.dir={tmp_path}/run{steps}"
        finetune(assembled(tmp_path, CASES["abstractor"], f"training.steps={steps}", name))
        targets.append(str(tmp_path / f"run{steps}"))
    folder = combine(targets, tmp_path / "both", Settings("cat", (0.5, 0.5))).folder
    made, *sources = (load_file(Path(one) / WEIGHTS) for one in (folder, *(f"{run}/adapter" for run in targets)))
    whole = [name for name in made if ".lora_" not in name]
    assert whole
    assert all(torch.allclose(made[name], (sources[0][name] + sources[1][name]) / 2, atol=1e-6) for name in whole)
    assert verify(str(folder)).holds
