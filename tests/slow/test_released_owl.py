"""A run that starts from a released mPLUG-Owl: trained, loaded again, merged, equal to the published formulas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

import qlmm
from qlmm.api import Outcome, finetune
from qlmm.artifacts.adapter.load import LoadedAdapter, check_base
from qlmm.artifacts.adapter.manifest import read_manifest
from qlmm.artifacts.merge.merge import Settings, merge
from qlmm.core.errors import ModelError
from qlmm.model.loading.base import Base
from qlmm.recipe.load import parse_recipe
from tests.assembling import pictures
from tests.released import Released, write_owl
from tests.runs import picture_row

pytestmark = pytest.mark.slow

RECIPE = """
version: 1
base:
  vision: {folder}/owl
  language: {folder}/owl
  connector: {{kind: abstractor, weights: {folder}/owl}}
  chat_template: owl
  quantize: none
adapter: {{r: 4}}
data: {{sources: [{{path: {folder}/rows.jsonl}}]}}
training:
  steps: 2
  batch_size: 2
  learning_rate: 1e-3
  connector_learning_rate: 1e-3
  warmup: 0
  log_every: 1
  gradient_checkpointing: false
evaluation: {{rows: 2, answers: 1, max_new_tokens: 3}}
output: {{dir: {folder}/run}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("released")


@pytest.fixture(scope="module", autouse=True)
def home(place: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("QLMM_HOME", str(place / "home"))
        yield


@pytest.fixture(scope="module")
def released(place: Path) -> Released:
    rows = [picture_row(place, number) for number in range(8)]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return write_owl(place / "owl")


@pytest.fixture(scope="module")
def outcome(released: Released, place: Path) -> Outcome:
    return finetune(parse_recipe(RECIPE.format(folder=place), "owl.yaml", []))


@pytest.fixture(scope="module")
def loaded(outcome: Outcome) -> LoadedAdapter:
    assert outcome.adapter is not None
    return qlmm.load(outcome.adapter)


def test_the_run_keeps_its_promises(outcome: Outcome) -> None:
    assert outcome.proof is not None
    assert outcome.status == "finished", [promise for promise in outcome.proof.promises if not promise.kept]


@torch.no_grad()
def test_the_base_answers_as_the_published_formulas_do(released: Released, loaded: LoadedAdapter) -> None:
    batch = loaded.processor(images=pictures(2), text="<image> what is <image> ?", return_tensors="pt")
    ids = batch["input_ids"]
    embeddings = functional.embedding(ids, released.weights["language_model.model.embed_tokens.weight"])
    seen = released.image_inputs(batch["pixel_values"])
    embeddings[ids == loaded.processor.image_token_id] = seen.flatten(0, 1)
    expected = released.logits(embeddings)
    with loaded.model.disable_adapter():
        base = loaded.model(**batch).logits
    assert torch.allclose(base, expected, atol=2e-4)
    assert not torch.allclose(loaded.model(**batch).logits, expected, atol=1e-2)


def test_training_started_from_the_released_abstractor(released: Released, outcome: Outcome) -> None:
    assert outcome.adapter is not None
    trained = load_file(outcome.adapter / "adapter_model.safetensors")
    queries = next(value for name, value in trained.items() if name.endswith("query_tokens"))
    # Adam moves a weight by at most its rate a step.
    assert 0 < float((queries - released.weights["query_tokens"]).abs().max()) <= 2.1 * 2 * 1e-3


def test_the_adapter_names_the_released_checkpoint(released: Released, outcome: Outcome) -> None:
    assert outcome.adapter is not None
    manifest = read_manifest(outcome.adapter)
    # A manifest can be shared: of a folder it says the name alone.
    named = {role: part.id for role, part in manifest.base.parts.items()}
    assert named == dict.fromkeys(("vision", "language", "connector"), released.folder.name)
    check_base(manifest, Base.resolve(manifest.recipe.base))


def test_other_weights_under_the_same_name_are_refused(released: Released, outcome: Outcome) -> None:
    assert outcome.adapter is not None
    manifest = read_manifest(outcome.adapter)
    single = released.folder / "pytorch_model.bin"
    torch.save(released.weights | {"query_tokens": torch.zeros(1, 5, 32)}, single)
    try:
        with pytest.raises(ModelError, match="is not the connector this adapter was trained on"):
            check_base(manifest, Base.resolve(manifest.recipe.base))
    finally:
        single.unlink()


def test_a_frozen_abstractor_is_merged_as_released(released: Released, place: Path) -> None:
    overrides = ["adapter.connector=frozen", f"output.dir={place / 'frozen'}"]
    frozen = finetune(parse_recipe(RECIPE.format(folder=place), "owl.yaml", overrides))
    assert frozen.adapter is not None
    merge(str(frozen.adapter), place / "merged", Settings(measured=False))
    merged: dict[str, torch.Tensor] = {}
    for file in (place / "merged").glob("*.safetensors"):
        merged |= load_file(file)
    assert torch.equal(merged["model.multi_modal_projector.query_tokens"], released.weights["query_tokens"])
