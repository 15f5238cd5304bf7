"""A connector starts from published weights, under whichever names they were published, or says why it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qlmm.core.errors import ModelError
from qlmm.model.contract import connector
from qlmm.model.loading.connector_weights import begin, check_fits, published_state, take_over, weights_identity
from qlmm.recipe.schema import ConnectorSection
from tests.assembling import llama
from tests.released import Released, write_owl


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLMM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def owl(tmp_path: Path) -> Released:
    return write_owl(tmp_path / "owl")


def section(folder: Path, kind: str = "abstractor", **settings: object) -> ConnectorSection:
    return ConnectorSection(kind=kind, weights=str(folder), **settings)


def mlp(prefix: str, first: str, second: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        f"{prefix}{first}.weight": torch.randn(64, 32),
        f"{prefix}{first}.bias": torch.randn(64),
        f"{prefix}{second}.weight": torch.randn(64, 64),
        f"{prefix}{second}.bias": torch.randn(64),
    }


@pytest.mark.parametrize(
    ("prefix", "first", "second"),
    [
        ("model.mm_projector.", "0", "2"),
        ("multi_modal_projector.", "linear_1", "linear_2"),
        ("model.multi_modal_projector.", "linear_1", "linear_2"),
    ],
)
def test_llavas_projector_has_three_published_names(prefix: str, first: str, second: str, tmp_path: Path) -> None:
    tower = {"model.vision_tower.embeddings.class_embedding": torch.ones(3)}
    save_file(mlp(prefix, first, second) | tower, tmp_path / "model.safetensors")
    module = connector("mlp").build(connector("mlp").read({}), 32, 64)
    begin(section(tmp_path, "mlp"), module, llama(300))
    expected = mlp("", "linear_1", "linear_2")
    assert all(torch.equal(module.state_dict()[name], value) for name, value in expected.items())


def test_llavas_mm_projector_file_is_read(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in mlp("model.mm_projector.", "0", "2").items()}
    torch.save(state, tmp_path / "mm_projector.bin")
    module = connector("mlp").build(connector("mlp").read({}), 32, 64)
    begin(section(tmp_path, "mlp"), module, llama(300))
    loaded = module.get_parameter("linear_2.weight")
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.half(), state["model.mm_projector.2.weight"])


def test_settings_come_from_the_checkpoint_and_are_its_tensors_sizes(owl: Released) -> None:
    taken = take_over(section(owl.folder, dropout=0.0))
    sizes = {"queries": 5, "layers": 2, "heads": 4, "hidden": 32, "inner": 48, "eps": 1e-6}
    assert taken.settings == sizes | {"dropout": 0.0}
    assert taken.weights == str(owl.folder)
    assert take_over(section(owl.folder, queries=5, inner=48)).settings == sizes


def test_every_setting_that_the_weights_contradict_is_named(owl: Released) -> None:
    with pytest.raises(ModelError) as caught:
        take_over(section(owl.folder, queries=64, heads=8, layers=2))
    assert {problem.code for problem in caught.value.problems} == {"M156"}
    message = str(caught.value)
    assert f"base.connector.queries: the recipe has 64, but {owl.folder} was made with 5" in message
    assert "base.connector.heads: the recipe has 8" in message
    assert "layers" not in message


def test_weights_of_another_connector_are_refused(owl: Released) -> None:
    with pytest.raises(ModelError, match="has no weights of the connector mlp") as caught:
        take_over(section(owl.folder, "mlp"))
    assert caught.value.problems[0].code == "M155"
    assert "model.mm_projector.0." in (caught.value.problems[0].help or "")


def test_part_of_the_weights_is_refused(tmp_path: Path) -> None:
    save_file({"abstractor.vit_eos": torch.ones(1, 1, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="does not have all of the connector abstractor"):
        take_over(section(tmp_path))


@pytest.mark.parametrize(
    ("vision_width", "text_width", "fault"),
    [(32, 48, r"has visual_fc.bias of 64, not 48"), (24, 64, r"lacks vision_proj.bias")],
)
def test_weights_for_other_widths_are_refused(owl: Released, vision_width: int, text_width: int, fault: str) -> None:
    taken, found = take_over(section(owl.folder)), connector("abstractor")
    module = found.build(found.read(taken.settings), vision_width, text_width)
    with pytest.raises(ModelError, match=fault):
        check_fits(taken, module)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no weights") as caught:
        take_over(section(tmp_path))
    assert caught.value.problems[0].code == "M151"


def test_a_name_that_is_nothing_is_refused_under_its_key() -> None:
    with pytest.raises(ModelError, match=r"base\.connector\.weights: no/such is neither a model folder here"):
        take_over(ConnectorSection(kind="mlp", weights="no/such"))


def test_without_weights_nothing_changes() -> None:
    plain = ConnectorSection(kind="mlp")
    assert take_over(plain) is plain
    assert published_state(plain) is None
    assert weights_identity(plain) is None


def test_identity_names_the_checkpoint_and_its_weights(owl: Released, tmp_path: Path) -> None:
    facts = weights_identity(section(owl.folder))
    assert facts is not None
    assert (facts.id, facts.revision) == (str(owl.folder), None)
    other = write_owl(tmp_path / "other")
    assert weights_identity(section(other.folder)) == facts.model_copy(update={"id": str(other.folder)})
    torch.save(other.weights | {"query_tokens": torch.zeros(1, 5, 32)}, other.folder / "pytorch_model.bin")
    changed = weights_identity(section(other.folder))
    assert changed is not None
    assert changed.config_sha256 != facts.config_sha256
