"""Adapters made into one: the arithmetic is what it says, and the result is an adapter like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from qlmm.api import finetune, load
from qlmm.artifacts.adapter.folder import file_hashes
from qlmm.artifacts.adapter.manifest import read_manifest, write_manifest
from qlmm.artifacts.adapter.verify import verify
from qlmm.artifacts.combine.checks import check_same_base, read_sources, resolve_base
from qlmm.artifacts.combine.combine import Settings, combine
from qlmm.artifacts.combine.heldout import Chosen, rows_to_compare
from qlmm.artifacts.hub.package import pack
from qlmm.cli.app import app
from qlmm.core.errors import UsageError
from qlmm.model.loading.base import Base
from qlmm.proof.probe import probe_rows
from qlmm.proof.records import ReloadProof
from qlmm.training.plan import make_plan
from tests.merge_cases import CASES, assembled
from tests.runs import TinyRun

pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"
ALPHA = 32


RUNS = {
    "a": ["training.steps=3"],
    "b": ["training.steps=5"],
    "rslora": ["adapter.r=8", "adapter.variant=rslora"],
    "lora_connector": ["adapter.connector=lora"],
    "other_seed": ["training.seed=1"],
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Runs on one base; what a fresh process says of them is tested elsewhere."""
    run = TinyRun.make(tmp_path_factory.mktemp("combine"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qlmm.api.prove_reload", lambda *_: ReloadProof(1, 0.0, 1.0, same=True))
        for name, overrides in RUNS.items():
            finetune(run.recipe("training.steps=2", "evaluation.rows=4", f"output.dir={run.folder}/{name}", *overrides))
    return run


@pytest.fixture
def both(tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Combines; no fresh process reads the result back, and nothing is measured."""
    monkeypatch.setattr("qlmm.artifacts.combine.combine.rows_to_compare", lambda *_: Chosen((), "not measured"))
    monkeypatch.setattr("qlmm.artifacts.combine.combine.prove_reload", lambda *_: ReloadProof(1, 0.0, 1.0, same=True))

    def make(method: Any, weights: tuple[float, ...], names: Sequence[str] = "ab", **options: Any) -> Path:
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


@pytest.mark.parametrize(
    ("method", "weights", "scale"),
    [
        ("cat", (0.5, 0.5), 1.0),
        ("cat", (1.0, 1.0), 2.0),
        ("cat", (0.5, -0.2), 0.3),
        ("linear", (0.5, 0.5), 1.0),
        ("linear", (0.2, 0.8), 1.0),
        ("ties", (1.0, 1.0), 1.0),
        ("ties", (0.5, 0.5), 0.5),
    ],
)
def test_lora_and_connector_are_scaled_alike(
    method: str, weights: tuple[float, ...], scale: float, both: Callable[..., Path], tiny: TinyRun
) -> None:
    made = load_file(both(method, weights, "aa", density=1.0) / WEIGHTS)
    source, base = load_file(tiny.folder / "a" / "adapter" / WEIGHTS), _base(tiny)
    found, wanted = delta(made, 1.0), delta(source, scale * ALPHA / 4)
    assert max(float(one.abs().max()) for one in wanted.values()) > 1e-4
    assert all(torch.allclose(found[one], wanted[one], atol=1e-6) for one in wanted)
    whole = [name for name in made if ".lora_" not in name]
    assert any(not torch.equal(source[name], base[name]) for name in whole)
    for name in whole:
        assert torch.allclose(made[name], base[name] + scale * (source[name] - base[name]), atol=1e-6)


@pytest.mark.parametrize("names", [("a", "b"), ("a", "rslora"), ("rslora", "a")])
def test_cat_adds_updates_of_any_rank_exactly(names: tuple[str, str], both: Callable[..., Path], tiny: TinyRun) -> None:
    made = load_file(both("cat", (0.7, -0.2), names) / WEIGHTS)
    found, wanted = delta(made, 1.0), exact(tiny, names, (0.7, -0.2))
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[one], wanted[one], atol=1e-6) for one in wanted)
    base = _base(tiny)
    first, second = (load_file(tiny.folder / name / "adapter" / WEIGHTS) for name in names)
    for name in (name for name in made if ".lora_" not in name):
        start = base[name]
        update = 0.7 * (first[name] - start) - 0.2 * (second[name] - start)
        assert torch.allclose(made[name], start + update, atol=1e-6)


def exact(tiny: TinyRun, names: tuple[str, str], weights: tuple[float, float]) -> dict[str, torch.Tensor]:
    """The weighted sum of two adapters' updates."""
    scales = {"a": ALPHA / 4, "b": ALPHA / 4, "rslora": ALPHA / 8**0.5}
    first, second = (delta(load_file(tiny.folder / name / "adapter" / WEIGHTS), scales[name]) for name in names)
    return {one: weights[0] * first[one] + weights[1] * second[one] for one in first}


def _base(tiny: TinyRun) -> dict[str, torch.Tensor]:
    """The base's weights, by the names that an adapter has for them."""
    base: Any = AutoModelForImageTextToText.from_pretrained(tiny.folder / "base", dtype=torch.float32)
    return {f"base_model.model.{name}": value for name, value in base.state_dict().items()}


@pytest.mark.parametrize("method", ["cat", "linear", "ties"])
def test_what_comes_out_verifies_and_says_what_it_is_made_of(method: str, both: Callable[..., Path]) -> None:
    folder = both(method, (0.5, 0.5))
    assert verify(folder).holds
    made = read_manifest(folder)
    assert made.proof is None
    assert made.combined is not None
    assert (made.combined.method, made.combined.weights) == (method, (0.5, 0.5))
    assert [source.steps for source in made.combined.sources] == [3, 5]
    assert method in (folder / "README.md").read_text("utf-8")


def test_the_command_names_adapters_and_measures_them_on_the_same_rows(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is called like the result, and one twice; paths stay where they are."""
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(tiny.folder / "a", tmp_path / "elsewhere" / "combined")
    before = file_hashes(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    sources = ["elsewhere/combined", str(tiny.folder / "b"), str(tiny.folder / "b" / "adapter")]
    done = CliRunner().invoke(app, ["combine", *sources, "--weights", "0.5,0.3,0.2", "--out", "both", "--json"])
    assert done.exit_code == 0, done.exception
    said = json.loads(done.stdout)["result"]
    assert list(said["losses"]) == ["combined-2", "b", "b-2", "combined"]
    assert said["rows"] == "4 rows that the runs held out, on none of which an adapter was trained"
    made = read_manifest(tmp_path / "both").combined
    assert made is not None
    assert (made.method, made.losses, made.measured_on) == ("cat", said["losses"], said["rows"])
    assert said["losses"]["b"] == said["losses"]["b-2"]
    parcel = pack(tmp_path / "both", "me/both", unproven=True)
    assert str(tiny.folder) not in parcel.manifest.model_dump_json() + parcel.card
    assert all(f"| `{name}` | {loss:.4f} |" in parcel.card for name, loss in said["losses"].items())
    assert file_hashes(tmp_path / "elsewhere") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both", "elsewhere"]


def test_no_row_is_measured_that_one_of_the_adapters_was_trained_on(tiny: TinyRun) -> None:
    """Two runs that split one file by other seeds held out rows that the other one learned from."""
    plans = [make_plan(tiny.recipe("evaluation.rows=4", f"training.seed={seed}").recipe) for seed in (0, 1)]
    trained = {row.content for plan in plans for row in plan.train}
    held_out = {row.content for plan in plans for row in plan.held_out}
    assert trained & held_out
    sources = read_sources([str(tiny.folder / name) for name in ("a", "other_seed")])
    left = len(held_out - trained)
    assert left > 0
    said = f"{left} row{'s' * (left > 1)} that the runs held out, on none of which an adapter was trained"
    assert (
        rows_to_compare(sources, resolve_base(sources)).words
        == f"{said}, without {len(held_out) - left} on which one was"
    )


def test_files_in_folders_of_the_processor_are_taken_along(
    tiny: TinyRun, tmp_path: Path, both: Callable[..., Path]
) -> None:
    folder = tmp_path / "source"
    shutil.copytree(tiny.folder / "a" / "adapter", folder)
    (folder / "qformer_tokenizer").mkdir()
    (folder / "qformer_tokenizer" / "tokenizer_config.json").write_text("{}", "utf-8")
    edited(folder, tmp_path / "whole", lambda manifest: manifest)
    made = both("cat", (0.5, 0.5), (str(tmp_path / "whole"), "b"))
    assert (made / "qformer_tokenizer" / "tokenizer_config.json").read_text("utf-8") == "{}"


def test_what_does_not_fit_on_the_disk_is_refused_before_the_base_is_loaded(
    both: Callable[..., Path], tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = both("cat", (0.5, 0.5))
    size = (made / WEIGHTS).stat().st_size
    shutil.rmtree(made)
    monkeypatch.setattr("qlmm.core.staging.free_bytes", lambda path: size)
    monkeypatch.setattr(Base, "load", lambda *_, **__: pytest.fail("the base was loaded"))
    with pytest.raises(UsageError, match="A034"):
        both("cat", (0.5, 0.5))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_put_into_an_adapter(tiny: TinyRun) -> None:
    sources = [str(tiny.folder / name) for name in "ab"]
    with pytest.raises(UsageError, match=r"A033.*lies inside"):
        combine(sources, tiny.folder / "b" / "adapter" / "both", Settings("cat", (0.5, 0.5)))


def test_a_connector_with_lora_and_one_trained_whole_are_refused(tiny: TinyRun, tmp_path: Path) -> None:
    targets = [str(tiny.folder / "a"), str(tiny.folder / "lora_connector")]
    with pytest.raises(UsageError, match=r"(?s)K006.*adapter\.connector"):
        combine(targets, tmp_path / "both", Settings("cat", (0.5, 0.5)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("weights", "names", "method", "code"),
    [
        ((1.0,), "ab", "linear", "K002"),
        ((1.0,), "a", "linear", "K001"),
        ((1.0, 1.0), "ab", "linear", "K002"),
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
    files = file_hashes(folder)
    write_manifest(folder, changed.model_copy(update={"files": files}))
    return folder


def _adapter(manifest: Any, **changes: Any) -> Any:
    return _recipe(manifest, adapter=manifest.recipe.adapter.model_copy(update=changes))


def _recipe(manifest: Any, **sections: Any) -> Any:
    return manifest.model_copy(update={"recipe": manifest.recipe.model_copy(update=sections)})


def _thinking(manifest: Any) -> Any:
    return _recipe(manifest, data=manifest.recipe.data.model_copy(update={"thinking": True}))


def _revision(manifest: Any, revision: str) -> Any:
    parts = {role: part.model_copy(update={"revision": revision}) for role, part in manifest.base.parts.items()}
    return manifest.model_copy(update={"base": manifest.base.model_copy(update={"parts": parts})})


def _configuration(manifest: Any) -> Any:
    parts = {role: part.model_copy(update={"config_sha256": "0" * 64}) for role, part in manifest.base.parts.items()}
    return manifest.model_copy(update={"base": manifest.base.model_copy(update={"parts": parts})})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda manifest: manifest.model_copy(update={"frozen_sha256": "0" * 64}), "K004"),
        (_configuration, "K004"),
        (lambda manifest: _adapter(manifest, variant="dora"), "K005"),
        (lambda manifest: _adapter(manifest, r=8), "K007"),
        (_thinking, "K008.*asked to think"),
    ],
    ids=["weights", "configuration", "dora", "rank", "thinking"],
)
def test_adapters_that_do_not_belong_together_are_refused(
    change: Callable[[Any], Any], code: str, tiny: TinyRun, tmp_path: Path
) -> None:
    other = edited(tiny.folder / "b" / "adapter", tmp_path / "other", change)
    with pytest.raises(UsageError, match=code):
        combine([str(tiny.folder / "a"), str(other)], tmp_path / "both", Settings("linear", (0.5, 0.5)))
    assert not (tmp_path / "both").exists()


def test_two_commits_are_refused_and_a_folder_may_be_a_copy_of_either(tiny: TinyRun, tmp_path: Path) -> None:
    """Of a folder no commit is known: there the hash of the frozen weights decides."""
    here = str(tiny.folder / "a")
    one, other = (
        str(edited(tiny.folder / "b" / "adapter", tmp_path / digit, partial(_revision, revision=digit * 40)))
        for digit in "01"
    )
    with pytest.raises(UsageError, match=r"K004.*revision 0"):
        check_same_base(read_sources([one, other]), "cat")
    check_same_base(read_sources([here, one]), "cat")


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
        files = file_hashes(folder)
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
    made, *sources = (load_file(one / WEIGHTS) for one in (folder, *(Path(run) / "adapter" for run in targets)))
    whole = [name for name in made if ".lora_" not in name]
    assert whole
    assert all(torch.allclose(made[name], (sources[0][name] + sources[1][name]) / 2, atol=1e-6) for name in whole)
    assert verify(folder).holds
