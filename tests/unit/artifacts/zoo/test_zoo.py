"""Entries of the zoo: what makes one, what is refused, and that a completed one is the run's adapter, byte for byte."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maintenance.zoo_entry import MOST_BYTES, check, page
from qlmm.artifacts.adapter.folder import file_hashes
from qlmm.artifacts.adapter.manifest import read_manifest
from qlmm.artifacts.zoo.catalogue import complete, located
from qlmm.artifacts.zoo.entry import entries, read_entry
from qlmm.core.errors import QlmmError
from qlmm.core.events import Finished, Resumed
from qlmm.core.files import file_sha256
from qlmm.proof.records import Promise
from qlmm.recipe import library
from qlmm.recipe.load import load_recipe
from qlmm.recipe.zoo import entry_folder, shipped, start_folder
from tests.run_facts import PROOF
from tests.zoo_runs import COMMIT, PINNED, TOKENIZER, Zoo, base, finished_run, recipe

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    return Zoo.make(tmp_path, monkeypatch)


def rewrite(path: Path, **changes: Any) -> None:
    """Change a JSON file by hand."""
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def test_an_entry_leaves_out_large_copies_and_is_completed_to_what_the_run_wrote(zoo: Zoo, tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    entry = zoo.add(run)
    there = {path.name for path in entry.iterdir()}
    assert "tokenizer.json" not in there
    assert {"tokenizer_config.json", "adapter_model.safetensors", "entry.json", "recipe.yaml"} <= there
    assert file_hashes(complete("mine")) == file_hashes(run / "adapter")
    assert located("zoo:mine") == complete("mine")
    assert load_recipe(entry / "recipe.yaml").recipe == read_manifest(run / "adapter").recipe


def test_an_entry_tells_what_its_run_measured(zoo: Zoo, tmp_path: Path) -> None:
    entry = read_entry(zoo.add(finished_run(tmp_path)))
    assert entry.manifest.proof == PROOF
    assert (entry.facts.minutes, entry.facts.machine) == (1.5, "cpu (2 cores), fp32")
    assert entry.result == "gap 0.75 nats"
    assert entry.command == "qlmm finetune zoo:mine"
    assert library.resolve("zoo:mine").samefile(zoo.folder / "mine" / "recipe.yaml")
    assert entry.size == "0.0 MB"


def test_the_length_of_a_continued_run_is_not_known(zoo: Zoo, tmp_path: Path) -> None:
    run = finished_run(tmp_path, events=(Resumed(1, "checkpoint-1"), Finished(2, 90.0)))
    assert read_entry(zoo.add(run)).facts.minutes is None


@pytest.mark.parametrize(("weights", "equal"), [(1000, True), (999, False)])
def test_a_second_run_is_compared_by_its_weights(zoo: Zoo, tmp_path: Path, weights: int, equal: bool) -> None:
    run, again = finished_run(tmp_path), finished_run(tmp_path / "again", weights=weights)
    rebuilt = read_entry(zoo.add(run, again=str(again))).facts.rebuilt
    assert rebuilt is not None
    assert rebuilt.equal is equal
    assert rebuilt.sha256 == file_sha256(again / "adapter" / "adapter_model.safetensors")
    with pytest.raises(QlmmError, match=r"Z015.*the same run"):
        zoo.add(run, "other", again=str(run))


BROKEN = replace(PROOF, promises=(Promise("every part moved", False, "none did"),))
LOCAL = "/somewhere/private"
KEY = "fedcba98" * 5
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "unproven": ({"proof": BROKEN}, {}, "Z010.*not proven"),
    "a name that is not one": ({}, {"name": "My Adapter"}, "Z011.*not a name"),
    "too large": ({"weights": MOST_BYTES // 4 + 1}, {}, "Z012.*more than the 5 MB"),
    "a path in the recipe": ({"recipe": recipe(f"output.dir={LOCAL}/run")}, {}, "Z013.*paths of this machine"),
    "a path in another file": (
        {"papers": {"adapter_config.json": f'{{"base_model_name_or_path": "{LOCAL}/model"}}'}},
        {},
        f"H011.*adapter_config.json names {LOCAL}",
    ),
    "an access key": ({"papers": {"probe.json": json.dumps([COMMIT, KEY])}}, {}, "H011.*probe.json .*Biases key"),
    "a pickle": ({"papers": {"optimizer.pt": "x"}}, {}, "H011.*optimizer.pt is a pickle"),
    "a base in a folder": ({"base": base("models/mine", None)}, {}, "Z013.*its base"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_nothing(zoo: Zoo, tmp_path: Path, case: str) -> None:
    run, request, match = REFUSED[case]
    with pytest.raises(QlmmError, match=match):
        zoo.add(finished_run(tmp_path, **run), **request)
    assert zoo.left() == []


@pytest.mark.parametrize("name", [PINNED, "some/llava"])
def test_the_commit_of_a_base_is_no_access_key(zoo: Zoo, tmp_path: Path, name: str) -> None:
    run = finished_run(tmp_path, base=base(name))
    assert re.search(rf"(?<![@/]){COMMIT}", (run / "adapter" / "README.md").read_text("utf-8"))
    entry = zoo.add(run)
    assert read_manifest(entry).base.parts["model"].revision == COMMIT


def test_the_commit_of_rows_is_no_access_key_either(zoo: Zoo, tmp_path: Path) -> None:
    rows = recipe(f"data.sources.0.path=some/rows@{KEY}")
    assert zoo.add(finished_run(tmp_path, recipe=rows, papers={"notes.txt": f"rows of {KEY}"})).is_dir()


def test_an_entry_is_completed_from_anywhere_with_the_template_of_its_maker(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "{{ messages[0].content }}"
    own = recipe("base.chat_template=mine.jinja")
    run = finished_run(tmp_path, recipe=own, papers={"chat_template.jinja": text})
    zoo.add(run)
    assert not Path("mine.jinja").exists()
    whole = complete("mine")
    assert (whole / "chat_template.jinja").read_text() == text
    assert file_hashes(whole) == file_hashes(run / "adapter")


def test_nothing_is_overwritten(zoo: Zoo, tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    before = file_hashes(zoo.add(run))
    with pytest.raises(QlmmError, match=r"Z011.*already"):
        zoo.add(run)
    assert file_hashes(zoo.folder / "mine") == before
    assert zoo.left() == ["mine"]


def test_an_adapter_without_its_run_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    (run / "run.json").unlink()
    with pytest.raises(QlmmError, match=r"Z010.*directory of its run"):
        zoo.add(run / "adapter")


def test_a_processor_that_writes_something_else_is_no_replacement(zoo: Zoo, tmp_path: Path) -> None:
    zoo.add(finished_run(tmp_path))
    zoo.written["tokenizer.json"] = TOKENIZER + " "
    with pytest.raises(QlmmError, match=r"Z004.*does not write tokenizer.json as it did for the run \(transformers"):
        complete("mine")
    assert not list((zoo.home / "zoo").glob("*/*"))
    del zoo.written["tokenizer.json"]
    with pytest.raises(QlmmError, match=r"Z004.*tokenizer.json"):
        complete("mine")


def test_what_cannot_be_written_again_is_not_left_out(zoo: Zoo, tmp_path: Path) -> None:
    zoo.written["tokenizer.json"] = TOKENIZER + " "
    entry = zoo.add(finished_run(tmp_path))
    assert (entry / "tokenizer.json").read_text() == TOKENIZER


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "probe.json", "held-out/1.png"])
def test_a_changed_file_is_named(zoo: Zoo, tmp_path: Path, name: str) -> None:
    entry = zoo.add(finished_run(tmp_path))
    (entry / name).write_bytes(b"changed")
    with pytest.raises(QlmmError, match=f"Z003.*{name}"):
        complete("mine")


def test_a_damaged_copy_is_made_again(zoo: Zoo, tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    zoo.add(run)
    whole = complete("mine")
    (whole / "tokenizer.json").write_text("cut short")
    (whole / "adapter_model.safetensors").unlink()
    assert complete("mine") == whole
    assert file_hashes(whole) == file_hashes(run / "adapter")


@pytest.mark.parametrize("name", ["qlmm.json", "README.md"])
@pytest.mark.parametrize("damage", ["{", None])
def test_a_copy_whose_papers_are_damaged_is_made_again(zoo: Zoo, tmp_path: Path, name: str, damage: str | None) -> None:
    run = finished_run(tmp_path)
    zoo.add(run)
    paper = complete("mine") / name
    paper.unlink()
    if damage is not None:
        paper.write_text(damage)
    assert file_hashes(complete("mine")) == file_hashes(run / "adapter")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"licence": None}, "licence"),
        ({"minutes": "ten"}, "minutes"),
        ({"stars": 5}, "stars"),
    ],
)
def test_an_entry_that_is_none_is_refused(zoo: Zoo, tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    entry = zoo.add(finished_run(tmp_path))
    rewrite(entry / "entry.json", **changes)
    with pytest.raises(QlmmError, match=f"(?s)Z002.*{why}"):
        read_entry(entry)


def test_facts_that_do_not_agree_are_found(zoo: Zoo, tmp_path: Path) -> None:
    entry = zoo.add(finished_run(tmp_path))
    check(entry)
    original, manifest = (read_text(entry / name) for name in ("entry.json", "qlmm.json"))
    rewrite(entry / "entry.json", rebuilt={"equal": True, "sha256": "0" * 64})
    with pytest.raises(QlmmError, match=r"Z020.*made again disagree"):
        check(entry)
    (entry / "entry.json").write_text(original, "utf-8")
    rewrite(entry / "qlmm.json", proof={"holds": True})
    with pytest.raises(QlmmError, match=r"A002.*qlmm.json is damaged: proof"):
        check(entry)
    rewrite(entry / "qlmm.json", proof=None)
    with pytest.raises(QlmmError, match=r"Z020.*proof does not hold"):
        check(entry)
    (entry / "qlmm.json").write_text(manifest, "utf-8")
    recipe_text = read_text(entry / "recipe.yaml")
    (entry / "recipe.yaml").write_text(recipe_text.replace("seed: 0", "seed: 1"), "utf-8")
    with pytest.raises(QlmmError, match=r"Z020.*not the recipe of the run"):
        check(entry)


def read_text(path: Path) -> str:
    return path.read_text("utf-8")


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_shipped_entry_agrees_with_its_run(name: str) -> None:
    check(shipped()[name])


def test_names_are_found_or_suggested(zoo: Zoo, tmp_path: Path) -> None:
    entry = zoo.add(finished_run(tmp_path), "owl_kinds")
    assert entry_folder("zoo:owl_kinds") == start_folder(Path("zoo:owl_kinds")) == entry
    assert located("runs/x/adapter") == start_folder(Path("runs/x/adapter")) == Path("runs/x/adapter")
    with pytest.raises(QlmmError, match="did you mean `owl_kinds`"):
        located("zoo:owl_kind")


def test_the_page_is_made_from_the_entries() -> None:
    assert shipped()
    assert (ROOT / "adapters_zoo" / "README.md").read_text("utf-8") == page()


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_shipped_entry_is_small_and_whole(name: str) -> None:
    folder, entry = shipped()[name], entries()[name]
    manifest = read_manifest(folder)
    there = file_hashes(folder)
    assert (folder / "adapter_model.safetensors").stat().st_size <= MOST_BYTES
    assert sum(path.stat().st_size for path in folder.rglob("*")) < MOST_BYTES + 500_000
    assert {file: there[file] for file in manifest.files if file in there}.items() <= manifest.files.items()
    assert "tokenizer.json" not in there
    assert entry.command == f"qlmm finetune zoo:{name}"
    assert library.header(library.resolve(f"zoo:{name}")).facts["run"] == entry.command
    proof = entry.manifest.proven_by
    assert proof.after is not None
    assert proof.after.gap > 0.2 or (proof.pairs_after is not None and proof.pairs_after.won > 0.6)
