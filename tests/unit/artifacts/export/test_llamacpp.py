"""GGUF files: every weight has its name and keeps its value, and another program reads the same model from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from qlmm.artifacts.export.llamacpp.file import GgufFile, Stored, compare, storage
from qlmm.artifacts.export.llamacpp.language import paired, plan_language
from qlmm.artifacts.export.llamacpp.vision import plan_vision
from qlmm.artifacts.export.llamacpp.vocabulary import CUTTING, cutting, read_vocabulary
from qlmm.core.errors import ModelError, RunError, UsageError
from tests.tiny import PATCH, SIDE, tiny_processor

TEXTS: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
TOWER: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
PICTURE = {"image_size": SIDE, "patch_size": PATCH}


def llava(text: str = "llama", tower: str = "clip", **changes: Any) -> LlavaForConditionalGeneration:
    """Two layers whose answers depend on every weight."""
    torch.manual_seed(0)
    spoken = TEXTS[text](
        vocab_size=len(tiny_processor().tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        **changes,
    )
    seen = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[tower](**TOWER, **PICTURE)
    select = "default" if tower == "clip" else "full"
    config = LlavaConfig(vision_config=seen, text_config=spoken, vision_feature_select_strategy=select)
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer")
    tiny_processor().save_pretrained(made)
    return made


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
    ids=["llama", "bias", "tied", "llama3", "qwen2", "qwen3"],
)
def test_transformers_reads_the_language_file_and_says_the_same(
    text: str, changes: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    model = llava(text, **changes)
    plan = plan_language(model, folder, "f32", None)
    written = plan.write(tmp_path / "model.gguf", model)
    assert len({one.name for one in written}) == len(written)
    assert compare(tmp_path / "model.gguf", written) == 0
    if "rope_parameters" in changes:  # what transformers does not read from GGUF
        assert written[-1].name == "rope_freqs.weight"
        model.model.language_model.rotary_emb = llava(text).model.language_model.rotary_emb
    read = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file="model.gguf", dtype=torch.float32).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        apart = (read(input_ids=ids).logits - model(input_ids=ids).logits).abs().max()
    assert apart < 1e-4


def test_llama3_divides_only_long_waves(folder: Path) -> None:
    factors = plan_language(llava(rope_parameters=LLAMA3), folder, "f32", None).tensors(llava())[-1].read()
    assert factors[0] == 1
    assert factors[-1] == 8
    assert bool((factors.diff() >= 0).all())


def test_rows_go_into_pairs_and_back() -> None:
    weight = torch.arange(24.0).reshape(8, 3)
    assert paired(weight, 2)[:4, 0].tolist() == [0, 6, 3, 9]
    assert torch.equal(unpaired(paired(weight, 2), 2), weight)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}, "yarn"),
        ("hidden_act", "gelu", "activation is gelu"),
    ],
)
def test_a_language_model_that_llama_cpp_computes_otherwise_is_refused(
    key: str, value: Any, said: str, folder: Path
) -> None:
    model = llava()
    setattr(model.config.text_config, key, value)
    with pytest.raises(ModelError, match=f"E031.*{said}"):
        plan_language(model, folder, "f16", None)


def test_a_language_model_of_another_kind_is_refused(folder: Path) -> None:
    model = llava()
    model.config.text_config = GPT2Config()
    with pytest.raises(ModelError, match=r"E031.*kind gpt2"):
        plan_language(model, folder, "f16", None)


def test_an_unknown_way_to_store_weights_is_refused_naming_the_known_ones(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"E032.*there is no q4_k[^$]*f16, bf16, q8_0, f32"):
        plan_language(llava(), folder, "q4_k", None)


def smolvlm() -> PreTrainedModel:
    config = SmolVLMConfig(
        vision_config={"model_type": "smolvlm_vision", **TOWER, "image_size": 56, "patch_size": PATCH},
        text_config=llava().config.text_config,
        scale_factor=2,
    )
    return SmolVLMForConditionalGeneration(config)


@pytest.mark.parametrize("kind", ["clip", "siglip", "smolvlm"])
def test_the_vision_file_holds_what_llama_cpp_reads(kind: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model, processor = smolvlm() if kind == "smolvlm" else llava(tower=kind), tiny_processor()
    if kind == "smolvlm":
        processor.image_processor.size = {"longest_edge": 112}
    plan = plan_vision(model, processor, "f16")
    written = plan.write(tmp_path / "mmproj.gguf", model)
    assert len(written) == len(plan.names)
    assert compare(tmp_path / "mmproj.gguf", written) < 1e-3
    said = {one.name: one.contents() for one in gguf.GGUFReader(str(tmp_path / "mmproj.gguf")).fields.values()}
    names = {one.name for one in written}
    blocks = {name.split(".")[2] for name in names if name.startswith("v.blk.")}
    assert said["general.architecture"] == "clip"
    assert said["clip.vision.projection_dim"] == 64
    assert {"v.patch_embd.weight", "v.position_embd.weight", "v.blk.0.attn_q.bias", "v.blk.1.ffn_down.weight"} <= names
    if kind == "smolvlm":
        assert said["clip.projector_type"] == "idefics3"
        assert said["clip.vision.projector.scale_factor"] == 2
        assert said["clip.vision.preproc_image_size"] == 112
        assert {"mm.model.fc.weight", "v.post_ln.weight"} <= names
        assert len(blocks) == said["clip.vision.block_count"] == 3
    else:
        assert said["clip.projector_type"] == "mlp"
        assert said["clip.vision.feature_layer"] == [2]
        assert len(blocks) == said["clip.vision.block_count"] == 2
        assert {"mm.0.weight", "mm.0.bias", "mm.2.weight", "mm.2.bias"} <= names
        assert "v.post_ln.weight" not in names
        assert ("v.class_embd" in names) == ("v.pre_ln.weight" in names) == (kind == "clip")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("projector_hidden_act", "linear"),
        ("vision_feature_select_strategy", "full"),
        ("vision_feature_layer", [-2, -5]),
        ("multimodal_projector_bias", False),
    ],
)
def test_a_connector_that_llama_cpp_computes_otherwise_is_refused(key: str, value: Any) -> None:
    model = llava()
    setattr(model.config, key, value)
    with pytest.raises(ModelError, match="E033"):
        plan_vision(model, tiny_processor(), "f16")


@pytest.mark.parametrize(
    ("name", "shape", "wanted", "kind"),
    [
        ("blk.0.attn_q.weight", (64, 64), "q8_0", "q8_0"),
        ("blk.0.attn_q.weight", (64, 33), "q8_0", "f16"),
        ("blk.0.attn_q.bias", (64,), "q8_0", "f32"),
        ("v.position_embd.weight", (5, 64), "f16", "f32"),
        ("v.patch_embd.weight", (64, 3, 14, 14), "q8_0", "f16"),
        ("v.patch_embd.weight", (64, 3, 14, 14), "bf16", "f32"),
        ("output.weight", (64, 64), "bf16", "bf16"),
    ],
)
def test_how_a_tensor_is_stored(name: str, shape: tuple[int, ...], wanted: Any, kind: str) -> None:
    assert storage(name, shape, wanted) == kind


def write(one: Stored, folder: Path) -> None:
    """A file of one tensor."""
    GgufFile("llama", one.kind, {}, fill=lambda writer: None, computed=(one,)).write(folder / "a.gguf", nn.Module())


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_a_value_that_changed_on_its_way_is_found(kind: Any, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 64, generator=generator) * torch.logspace(-4, 2, 64)
    one = Stored("output.weight", (4, 64), kind, lambda: values)
    write(one, tmp_path)
    assert compare(tmp_path / "a.gguf", [one]) < 0.02
    other = values.clone()
    other[2, 63] *= 1.05
    with pytest.raises(RunError, match="E023"):
        compare(tmp_path / "a.gguf", [Stored("output.weight", (4, 64), kind, lambda: other)])
    with pytest.raises(RunError, match="E023"):
        compare(tmp_path / "a.gguf", [])


def test_a_weight_too_large_for_halves_is_refused(tmp_path: Path) -> None:
    one = Stored("output.weight", (1, 32), "f16", lambda: torch.full((1, 32), 1e5))
    with pytest.raises(RunError, match=r"E021[^$]*--outtype bf16"):
        write(one, tmp_path)


def test_a_weight_that_is_not_as_planned_is_refused(tmp_path: Path) -> None:
    one = Stored("output.weight", (2, 32), "f32", lambda: torch.zeros(1, 32))
    with pytest.raises(ModelError, match=r"E022.*output\.weight"):
        write(one, tmp_path)


def test_tokens_have_their_kinds_and_every_row_has_a_token(folder: Path) -> None:
    tokenizer = tiny_processor().tokenizer
    found = read_vocabulary(folder, rows=len(tokenizer) + 2)
    assert (found.model, found.cutting) == ("gpt2", "gpt-2")
    assert list(found.tokens[: len(tokenizer)]) == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert [found.tokens[number] for number, kind in enumerate(found.kinds) if kind == 5] == list(found.tokens[-2:])
    control = {found.tokens[number] for number, kind in enumerate(found.kinds) if kind == 3}
    assert control == {"<pad>", "<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>"}


@pytest.mark.parametrize(("single", "wanted"), [("$A", (0, 0)), ("<s> $A", (1, 0)), ("<s> $A </s>", (1, 1))])
def test_tokens_around_every_text_are_said(single: str, wanted: tuple[bool, bool], tmp_path: Path) -> None:
    tokenizer = tiny_processor().tokenizer
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special)
    tokenizer.save_pretrained(tmp_path)
    found = read_vocabulary(tmp_path, rows=len(tokenizer))
    assert (found.begins, found.ends) == wanted


def test_a_vocabulary_larger_than_the_embeddings_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="10 embeddings"):
        read_vocabulary(folder, rows=10)


def test_pieces_are_made_in_the_order_of_their_merges(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "<0x0A>": 1, "a": 2, "b": 3, "c": 4, "bc": 5, "ab": 6, "▁": 7}
    written = {
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "unk_token": "<unk>",
            "vocab": vocabulary,
            "merges": [["b", "c"], ["a", "b"]],
        },
        "pre_tokenizer": None,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]},
        "added_tokens": [{"id": 0, "content": "<unk>", "special": True} | dict.fromkeys(FLAGS, False)],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(written), encoding="utf-8")
    found = read_vocabulary(tmp_path, rows=8)
    assert (found.model, found.space_first) == ("llama", True)
    assert found.kinds[:3] == (2, 6, 1)
    assert found.scores[5] > found.scores[6] > found.scores[2] == found.scores[7]


QWEN2 = next(steps[0] for steps, name in CUTTING.items() if name == "qwen2")
WHOLE = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}], "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}], "smollm"),
        ([{"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False}, WHOLE], "qwen2"),
        ([{"type": "Digits", "individual_digits": False}, WHOLE], None),
        ([{"type": "Whitespace"}], None),
        ([{"type": "ByteLevel", "add_prefix_space": True}], None),
    ],
)
def test_how_text_is_cut_has_a_name_or_is_refused(steps: list[dict[str, Any]], name: str | None) -> None:
    given = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
    if name is None:
        with pytest.raises(ModelError, match="E030"):
            cutting(given)
    else:
        assert cutting(given) == name


def unpaired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The way back from :func:`paired`."""
    rows = weight.shape[0] // heads
    return weight.reshape(heads, rows // 2, 2, -1).transpose(1, 2).reshape(weight.shape)
