"""``qlmm.json``: what is written is read back, and what is damaged is refused with a way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlmm.artifacts.adapter.manifest import PACKAGES, Manifest, read_manifest, versions, write_manifest
from qlmm.core.errors import ModelError
from qlmm.core.filenames import LOCAL_RECIPE, MANIFEST
from qlmm.model.loading.identity import PartIdentity
from qlmm.recipe.load import parse_recipe
from tests.run_facts import PROOF
from tests.unit.artifacts.adapters import RECIPE, learned, manifest

PLACE = "/somewhere/secret-project"
COMMIT = "0123456789abcdef" * 2 + "01234567"


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = manifest()
    write_manifest(tmp_path, written)
    assert read_manifest(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def local(**overrides: str) -> Manifest:
    """A manifest of a run whose base and rows lie in folders of this machine."""
    here = [f"base.model={PLACE}/llava", f"data.sources.0.path={PLACE}/squad", f"output.dir={PLACE}/run"]
    recipe = parse_recipe(RECIPE.format(base="model: x"), "r.yaml", here).recipe
    base = {"kind": "native", "parts": {"model": {"id": f"{PLACE}/llava", "revision": COMMIT, "config_sha256": "aa"}}}
    return manifest(recipe=recipe, base=base, data=learned(f"{PLACE}/squad", kept=3), **overrides)


def test_paths_of_this_machine_stay_beside_what_is_shared(tmp_path: Path) -> None:
    """This machine finds its base and its rows again; whoever gets the manifest reads names and hashes."""
    written = local()
    write_manifest(tmp_path, written)
    assert read_manifest(tmp_path).recipe == written.recipe
    text = (tmp_path / MANIFEST).read_text("utf-8")
    assert PLACE not in text
    shared = read_manifest(tmp_path, local=False)
    assert (shared.recipe.base.model, shared.recipe.output.dir) == ("llava", "run")
    assert shared.base.parts["model"] == PartIdentity(id="llava", revision=COMMIT, config_sha256="aa")
    # A folder of rows must not pass for the data set of the Hub that is called alike.
    assert shared.recipe.data.sources[0].path == shared.data.sources[0].path == "./squad"
    (tmp_path / LOCAL_RECIPE).unlink()
    assert read_manifest(tmp_path) == shared


def test_an_access_key_is_not_written(tmp_path: Path) -> None:
    key = "hf_" + "aB3dE5gH7j" * 3
    recipe = local().recipe
    training = recipe.training.model_copy(update={"extra": {"run_name": key}})
    write_manifest(tmp_path, manifest(recipe=recipe.model_copy(update={"training": training})))
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, LOCAL_RECIPE}
    assert all(key not in path.read_text("utf-8") for path in tmp_path.iterdir())


def test_paths_that_belong_to_another_manifest_are_not_used(tmp_path: Path) -> None:
    write_manifest(tmp_path, local())
    other = local().shared().model_copy(update={"recipe": manifest().recipe})
    (tmp_path / MANIFEST).write_text(other.model_dump_json(), "utf-8")
    assert read_manifest(tmp_path) == other
    write_manifest(tmp_path, manifest())
    assert not (tmp_path / LOCAL_RECIPE).exists()


def test_the_proof_is_whole_after_a_round_trip(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    assert read_manifest(tmp_path).proof == PROOF


def test_a_later_writing_replaces_the_earlier_one(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    write_manifest(tmp_path, manifest(steps=7))
    assert read_manifest(tmp_path).steps == 7


def test_the_versions_that_decide_a_result_are_recorded() -> None:
    found = versions()
    assert set(found) == {"qlmm", *PACKAGES}
    assert {"torch", "transformers", "trl", "peft", "bitsandbytes"} <= set(PACKAGES)
    assert all(found.values())


def test_a_folder_without_a_manifest_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not an adapter made by qlmm") as caught:
        read_manifest(tmp_path)
    assert caught.value.problems[0].code == "A001"
    assert caught.value.problems[0].help == "name the adapter folder of a finished run"


def test_a_run_directory_is_told_where_its_adapter_is(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    write_manifest(tmp_path / "adapter", manifest())
    with pytest.raises(ModelError) as caught:
        read_manifest(tmp_path)
    assert caught.value.problems[0].help == f"did you mean {tmp_path / 'adapter'}?"


def test_a_cut_manifest_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    whole = (tmp_path / MANIFEST).read_bytes()
    for length in range(0, len(whole) - 2, 41):
        (tmp_path / MANIFEST).write_bytes(whole[:length])
        _refused(tmp_path)


def _refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_manifest(folder)
    (problem,) = caught.value.problems
    assert problem.code == "A002"
    assert problem.help
    return problem.message


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"null", b'{"version": 1}', b"{" * 5000])
def test_what_is_no_manifest_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    assert "is damaged" in _refused(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("version", 2, "version"),
        ("steps", "many", "steps"),
        ("precision", "fp8", "precision"),
        ("auto_map", {"AutoModel": "code.Model"}, "auto_map"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused_by_name(
    key: str, value: object, named: str, tmp_path: Path
) -> None:
    raw = json.loads(manifest().model_dump_json())
    (tmp_path / MANIFEST).write_text(json.dumps(raw | {key: value}))
    assert f"is damaged: {named}:" in _refused(tmp_path)


def test_a_recipe_inside_a_manifest_is_held_to_the_rules_of_recipes(tmp_path: Path) -> None:
    raw = json.loads(manifest().model_dump_json())
    raw["recipe"]["adapter"]["rank"] = 8
    (tmp_path / MANIFEST).write_text(json.dumps(raw))
    assert "recipe.adapter.rank" in _refused(tmp_path)


def test_unknown_facts_about_a_run_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="extra"):
        Manifest(**manifest().model_dump(), another="fact")


@pytest.mark.parametrize("name", ["../x.json", "/x.json", "a/../../x", "..", "a\\b", ""])
def test_no_file_of_a_manifest_leads_out_of_its_folder(name: str, tmp_path: Path) -> None:
    raw = manifest().model_copy(update={"files": {name: "0" * 64}}).model_dump_json()
    (tmp_path / MANIFEST).write_text(raw, "utf-8")
    with pytest.raises(ModelError, match=r"A002.*leads out of the folder"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "base", [{}, {"kind": "native", "parts": {}}, {"kind": "native", "parts": {"model": {"id": "x"}}}, {"kind": "odd"}]
)
def test_a_base_that_is_not_described_is_refused(base: dict[str, object], tmp_path: Path) -> None:
    raw = json.loads(manifest().model_dump_json())
    (tmp_path / MANIFEST).write_text(json.dumps(raw | {"base": base}))
    assert "is damaged: base." in _refused(tmp_path)
