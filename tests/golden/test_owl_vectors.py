"""mPLUG-Owl's vision tower and abstractor reproduce the original code's numbers, and wrong variants do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModel

from qlmm.model.assembled.owl_checkpoint import vision_config_from, vision_state
from qlmm.model.connectors import abstractor
from qlmm.model.connectors.abstractor import CONNECTOR, Abstractor, AbstractorSettings, published_settings
from tests.golden.fill import fill, norm_weights, query_wave, wave

TOLERANCE = 5e-6
G1 = AbstractorSettings(queries=3, layers=2, heads=2, inner=12, dropout=0.0)
ROWS = torch.tensor(
    [
        [0.72519210, -0.05372995, -0.79220275, -0.90613089, -0.30366113, 0.54089127],
        [-2.10481492, -1.25437310, 0.57697860, 1.96039880, 1.81487173, 0.25198609],
        [-0.24508423, 0.86567060, 1.29671065, 0.71605498, -0.41885672, -1.22145337],
    ],
    dtype=torch.float64,
)
SUM, ABS_SUM = 1.680861709, 16.930144642
MASKED_SUM, MASKED_ABS_SUM = 1.962239034, 17.118808865


def released_shapes() -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Names and shapes of the small abstractor as released: the queries are no parameter of it."""
    module = Abstractor(G1, 8, 6)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items() if name != "query_tokens"}
    return shapes, norm_weights(module)


def g1(make: Callable[[], Abstractor] = lambda: Abstractor(G1, 8, 6)) -> Abstractor:
    """The small abstractor with golden weights, in float64."""
    shapes, norms = released_shapes()
    module = make().double()
    module.load_state_dict({**fill(shapes, norms), "query_tokens": query_wave(1, 3, 8)})
    return module.eval()


def mismatch(output: Tensor) -> float:
    """Largest distance from the golden rows."""
    return float((output[0, :3] - ROWS).abs().max())


def test_g1_has_the_released_parameter_names() -> None:
    shapes, _ = released_shapes()
    assert len(shapes) == 47
    assert "encoder.layers.1.crossattention.output.mlp.ffn_ln.weight" in shapes
    assert sum(name.startswith("encoder.layers.0.") for name in shapes) == 22


def test_g1_output() -> None:
    output = g1()(wave(1, 5, 8))
    assert output.shape == (1, 4, 6)
    assert mismatch(output) < TOLERANCE
    # The original's norms run in fp32 whatever the input, so the sums of exact float64 arithmetic differ by 1e-6.
    assert output.sum().item() == pytest.approx(SUM, abs=TOLERANCE)
    assert output.abs().sum().item() == pytest.approx(ABS_SUM, abs=TOLERANCE)
    assert output.sum().item() == pytest.approx(1.680861779, abs=1e-8)


def test_g1_gradients() -> None:
    module = g1()
    module(wave(1, 5, 8)).square().sum().backward()
    layer = "encoder.layers.0.crossattention."
    expected = {
        layer + "norm1.weight": 5.36356807,
        layer + "attention.query.weight": 5.16154812,
        "visual_fc.weight": 44.45524529,
        "vit_eos": 0.80779284,
    }
    for name, norm in expected.items():
        gradient = module.get_parameter(name).grad
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(norm, abs=2e-5)


def test_g1_masking_image_tokens_is_dropping_them() -> None:
    module, image = g1(), wave(1, 5, 8)
    masked = module(image, torch.tensor([[True, True, True, False, False]]))
    assert masked.sum().item() == pytest.approx(MASKED_SUM, abs=TOLERANCE)
    assert masked.abs().sum().item() == pytest.approx(MASKED_ABS_SUM, abs=TOLERANCE)
    assert torch.allclose(masked, module(image[:, :3]), rtol=0, atol=1e-12)


def test_image_tokens_have_no_order() -> None:
    module, image = g1(), wave(1, 5, 8)
    assert torch.allclose(module(image), module(image.flip(1)), atol=1e-12)


@contextmanager
def patched(owner: type[nn.Module], forward: Callable[..., Tensor]) -> Iterator[None]:
    with mock.patch.object(owner, "forward", forward):
        yield


def raw_residual(self: abstractor.CrossAttention, queries: Tensor, image: Tensor, mask: Tensor | None) -> Tensor:
    normalised = self.norm1(queries)
    keys = torch.cat([normalised, self.normk(image)], dim=1)
    return self.output(queries, self.attention(normalised, keys, mask))


def no_image_norm(self: abstractor.CrossAttention, queries: Tensor, image: Tensor, mask: Tensor | None) -> Tensor:
    normalised = self.norm1(queries)
    return self.output(normalised, self.attention(normalised, torch.cat([normalised, image], dim=1), mask))


def queries_not_among_keys(
    self: abstractor.CrossAttention, queries: Tensor, image: Tensor, mask: Tensor | None
) -> Tensor:
    normalised = self.norm1(queries)
    return self.output(normalised, self.attention(normalised, self.normk(image), None))


def swapped_keys_and_values(
    self: abstractor.CrossAttentionHeads, queries: Tensor, keys: Tensor, mask: Tensor | None
) -> Tensor:
    return (
        functional.scaled_dot_product_attention(
            self._split(self.query(queries)), self._split(self.value(keys)), self._split(self.key(keys))
        )
        .transpose(1, 2)
        .flatten(2)
    )


def gelu(self: abstractor.GatedFeedForward, tokens: Tensor) -> Tensor:
    return self.w2(self.ffn_ln(functional.gelu(self.w1(tokens)) * self.w3(tokens)))


def no_inner_norm(self: abstractor.GatedFeedForward, tokens: Tensor) -> Tensor:
    return self.w2(functional.silu(self.w1(tokens)) * self.w3(tokens))


def swapped_gate(self: abstractor.GatedFeedForward, tokens: Tensor) -> Tensor:
    return self.w2(self.ffn_ln(functional.silu(self.w3(tokens)) * self.w1(tokens)))


@pytest.mark.parametrize(
    ("owner", "forward", "change"),
    [
        (abstractor.CrossAttention, raw_residual, 1.34),
        (abstractor.CrossAttention, no_image_norm, 0.55),
        (abstractor.CrossAttention, queries_not_among_keys, 0.69),
        (abstractor.CrossAttentionHeads, swapped_keys_and_values, 1.88),
        (abstractor.GatedFeedForward, gelu, 0.061),
        (abstractor.GatedFeedForward, no_inner_norm, 0.265),
        (abstractor.GatedFeedForward, swapped_gate, 0.36),
    ],
)
def test_g1_catches_a_wrong_formula(owner: type[nn.Module], forward: Callable[..., Tensor], change: float) -> None:
    module = g1()
    with patched(owner, forward):
        assert mismatch(module(wave(1, 5, 8))) == pytest.approx(change, rel=0.02)


@pytest.mark.parametrize(
    ("norms", "eps", "change"),
    [(("norm1", "normk", "norm2"), 1e-6, 7.7e-5), (("ffn_ln",), 1e-5, 9.0e-5)],
)
def test_g1_catches_a_wrong_epsilon(norms: tuple[str, ...], eps: float, change: float) -> None:
    module = g1()
    for name, child in module.named_modules():
        if isinstance(child, nn.LayerNorm) and name.endswith(norms):
            child.eps = eps
    assert mismatch(module(wave(1, 5, 8))) == pytest.approx(change, rel=0.02)
    assert change > 10 * TOLERANCE


def test_released_sizes_have_the_released_parameter_count() -> None:
    with torch.device("meta"):
        module = Abstractor(AbstractorSettings(), 1024, 4096)
    assert sum(parameter.numel() for parameter in module.parameters()) == 81_473_536
    assert module.state_dict()["encoder.layers.0.crossattention.output.mlp.w1.weight"].shape == (2816, 1024)


def test_abstractor_settings_are_read_from_the_weights() -> None:
    shapes, norms = released_shapes()
    released = {f"abstractor.{name}": weight for name, weight in fill(shapes, norms).items()}
    released["query_tokens"] = query_wave(1, 3, 8)
    state = {str(CONNECTOR.own_name(name)): weight for name, weight in released.items()}
    settings = published_settings(state, {"visual_abstractor_config": {"num_attention_heads": 2}})
    assert settings == G1.model_copy(update={"hidden": 8, "dropout": 0.1})
    module = Abstractor(settings, 8, 6).double().eval()
    module.load_state_dict(state)
    assert mismatch(module(wave(1, 5, 8))) < TOLERANCE


VISION_SHAPES: dict[str, tuple[int, ...]] = {
    "embeddings.cls_token": (1, 1, 8),
    "embeddings.position_embedding": (1, 5, 8),
    "embeddings.patch_embed.weight": (8, 3, 2, 2),
    "embeddings.pre_layernorm.weight": (8,),
    "embeddings.pre_layernorm.bias": (8,),
    "post_layernorm.weight": (8,),
    "post_layernorm.bias": (8,),
}
LAYER_SHAPES: dict[str, tuple[int, ...]] = {
    "input_layernorm.weight": (8,),
    "input_layernorm.bias": (8,),
    "self_attn.query_key_value.weight": (24, 8),
    "self_attn.query_key_value.bias": (24,),
    "self_attn.dense.weight": (8, 8),
    "self_attn.dense.bias": (8,),
    "post_attention_layernorm.weight": (8,),
    "post_attention_layernorm.bias": (8,),
    "mlp.fc1.weight": (12, 8),
    "mlp.fc1.bias": (12,),
    "mlp.fc2.weight": (8, 12),
    "mlp.fc2.bias": (8,),
}


def g2_weights() -> dict[str, Tensor]:
    """Released names and golden values of the small vision tower."""
    shapes = VISION_SHAPES | {f"encoder.layers.{n}.{name}": s for n in (0, 1) for name, s in LAYER_SHAPES.items()}
    assert len(shapes) == 31
    norms = [name for name in shapes if name.endswith("layernorm.weight")]
    return {f"vision_model.{name}": weight for name, weight in fill(shapes, norms).items()}


def g2(eps: float = 1e-6, state: dict[str, Tensor] | None = None) -> Tensor:
    """The small tower's final, normalised tokens, hosted by CLIP."""
    weights = g2_weights()
    config = vision_config_from(weights, heads=2)
    config.layer_norm_eps = eps
    tower = CLIPVisionModel(config).double().eval()
    missing, unexpected = tower.load_state_dict(state or vision_state(weights, heads=2), strict=False)
    assert not unexpected
    assert not missing
    with torch.no_grad():
        return tower.post_layernorm(tower(wave(1, 3, 4, 4)).last_hidden_state)


def test_g2_vision_tokens() -> None:
    tokens = g2()
    assert tokens.shape == (1, 5, 8)
    assert tokens.sum().item() == pytest.approx(-1.552934, abs=2e-5)
    assert tokens.abs().sum().item() == pytest.approx(34.476340, abs=2e-5)
    first = torch.tensor([1.139555, 0.798665, -1.168980, -0.551609, -0.054773], dtype=torch.float64)
    assert torch.allclose(tokens.flatten()[:5], first, atol=1e-5)


def test_g2_catches_a_wrong_epsilon_and_a_wrong_reading_of_the_fused_layer() -> None:
    right = g2()
    assert (g2(eps=1e-5) - right).abs().max().item() == pytest.approx(1.8e-4, rel=0.05)
    wrong = vision_state(g2_weights(), heads=2)
    for n in (0, 1):
        for kind in ("weight", "bias"):
            fused = g2_weights()[f"vision_model.encoder.layers.{n}.self_attn.query_key_value.{kind}"]
            for letter, part in zip("qkv", fused.unflatten(0, (3, -1)).unbind(0), strict=True):
                wrong[f"encoder.layers.{n}.self_attn.{letter}_proj.{kind}"] = part
    assert (g2(state=wrong) - right).abs().max().item() == pytest.approx(3.1, rel=0.05)
