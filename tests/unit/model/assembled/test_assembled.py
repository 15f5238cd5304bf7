"""Putting parts together changes neither part, and what cannot be put together is told before training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlavaForConditionalGeneration,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from qlmm.core.errors import ModelError
from qlmm.model.assembled.build import assemble, assembled_config, connector_for
from qlmm.model.assembled.language import (
    IMAGE_PLACEHOLDER,
    add_image_token,
    check_language,
    check_same_answers,
    embedding_width,
)
from qlmm.model.assembled.model import AssembledForConditionalGeneration
from qlmm.model.assembled.vision import vision_facts
from qlmm.model.numerics.quantization import keep_trainable
from tests.assembling import SIDE, build, llama, pictures, tower
from tests.tiny import tiny_tokenizer

ABSTRACTOR = {"queries": 5, "layers": 2, "heads": 4, "inner": 48}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
HEADS = {"num_key_value_heads": 2, "head_dim": 16}


def language_configs() -> Iterator[Any]:
    """One small configuration per layout of embeddings and head that transformers has."""
    yield pytest.param(Qwen3Config(**SMALL, **HEADS, vocab_size=300), True, id="qwen3")
    yield pytest.param(Qwen3Config(**SMALL, **HEADS, vocab_size=300, tie_word_embeddings=True), True, id="qwen3-tied")
    yield pytest.param(Gemma3TextConfig(**SMALL, **HEADS, vocab_size=300), True, id="gemma3-scaled-embeddings")
    yield pytest.param(GPTNeoXConfig(**SMALL, vocab_size=300), True, id="gptneox-embed-in")
    yield pytest.param(PhiConfig(**SMALL, vocab_size=300), False, id="phi-head-with-bias")
    yield pytest.param(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=300), False, id="gpt2-wte-tied")
    yield pytest.param(BloomConfig(hidden_size=64, n_layer=2, n_head=4, vocab_size=300), False, id="bloom")
    opt = {"hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
    yield pytest.param(OPTConfig(**opt, word_embed_proj_dim=32), False, id="opt-narrow-embeddings")


def assembled(language: PreTrainedModel, kind: str = "mlp", tower_kind: str = "clip") -> PreTrainedModel:
    """A model around a given language model."""
    vision = tower(tower_kind)
    facts = vision_facts(vision.config, (SIDE, SIDE))
    module, spec = connector_for(
        kind,
        ABSTRACTOR if kind == "abstractor" else {},
        facts=facts,
        text_width=embedding_width(language),
        seed=0,
    )
    image_token_id = add_image_token(tiny_tokenizer(), language)
    return assemble(vision, language, module, assembled_config(vision.config, language, spec, image_token_id))


@pytest.mark.parametrize(("config", "plain"), language_configs())
@torch.no_grad()
def test_any_layout_of_language_model_assembles_saves_and_loads(
    config: PreTrainedConfig, plain: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    language = AutoModelForCausalLM.from_config(config).eval()
    model = assembled(language)
    assert (type(model) is LlavaForConditionalGeneration) == plain
    inputs = {
        "input_ids": torch.tensor([[5, *[model.config.image_token_id] * 4, 7, 8]]),
        "pixel_values": torch.rand(1, 3, SIDE, SIDE),
    }
    text = torch.tensor([[9, 8, 7, 6, 5]])
    assert torch.equal(model(input_ids=text).logits, language(input_ids=text).logits)
    tied = language.get_output_embeddings().weight is language.get_input_embeddings().weight
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert model.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[1] == 9


def test_nothing_is_copied() -> None:
    vision, language = tower("clip"), llama(400)
    facts = vision_facts(vision.config, (SIDE, SIDE))
    module, spec = connector_for("abstractor", ABSTRACTOR, facts=facts, text_width=64, seed=0)
    model = assemble(vision, language, module, assembled_config(vision.config, language, spec, 332))
    ours = {parameter.data_ptr() for parameter in model.parameters()}
    theirs = {p.data_ptr() for part in (vision, language, module) for p in part.parameters()}
    assert ours == theirs
    assert model.generation_config is language.generation_config
    assert model.config.text_config is language.config
    assert not model.training


def test_module_names_are_llavas() -> None:
    for kind in ("mlp", "abstractor"):
        model = build(kind, "clip").model
        assert model.base_model_prefix == "model"
        assert {name for name, _ in model.named_children()} == {"model", "lm_head"}
        assert {name for name, _ in model.model.named_children()} == {
            "vision_tower",
            "multi_modal_projector",
            "language_model",
        }
        assert model.get_encoder("image") is model.model.vision_tower
        assert model.get_decoder() is model.model.language_model


def test_loaded_parts_keep_their_kind_of_attention() -> None:
    language = llama(400)
    language.set_attn_implementation("eager")
    vision = tower("clip")
    vision.set_attn_implementation("eager")
    facts = vision_facts(vision.config, (SIDE, SIDE))
    module, spec = connector_for("mlp", {}, facts=facts, text_width=64, seed=0)
    model = assemble(vision, language, module, assembled_config(vision.config, language, spec, 332))
    kinds = {config._attn_implementation for config in (vision.config, language.config, model.config)}
    assert kinds == {"eager"}


def test_parts_on_the_meta_device_can_be_planned_with() -> None:
    with torch.device("meta"):
        vision, language = tower("clip"), llama(400)
        facts = vision_facts(vision.config, (SIDE, SIDE))
        module, spec = connector_for("abstractor", ABSTRACTOR, facts=facts, text_width=64, seed=0)
    config = assembled_config(vision.config, language, spec, 332)
    planned = assemble(vision, language, module, config)
    assert {parameter.device.type for parameter in planned.parameters()} == {"meta"}


def test_a_missing_buffer_is_found() -> None:
    vision, language = tower("clip"), llama(400)
    facts = vision_facts(vision.config, (SIDE, SIDE))
    module, spec = connector_for("mlp", {}, facts=facts, text_width=64, seed=0)
    language.model.rotary_emb.inv_freq = language.model.rotary_emb.inv_freq.to("meta")
    with pytest.raises(ModelError, match="inv_freq"):
        assemble(vision, language, module, assembled_config(vision.config, language, spec, 332))


def test_registers_never_reach_a_projector() -> None:
    built = build("mlp", "registers")
    assert isinstance(built.model, AssembledForConditionalGeneration)
    assert (built.spec.skip_tokens, built.spec.tokens) == (5, 4)
    assert build("abstractor", "registers").spec.skip_tokens == 0


def test_assembled_models_are_known_to_auto_classes(tmp_path: Path) -> None:
    built = build("abstractor", "efficientnet_lite0")
    built.model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)).__name__ == "AssembledConfig"
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(again) is AssembledForConditionalGeneration
    assert again.config.spec() == built.spec


def test_connector_in_fp32_takes_a_16_bit_towers_tokens() -> None:
    built = build("abstractor", "clip")
    built.model.model.vision_tower.to(torch.bfloat16)
    built.model.model.language_model.to(torch.bfloat16)
    built.model.lm_head.to(torch.bfloat16)
    batch = built.batch("a <image> cat", pictures(1))
    assert built.model(**batch).logits.isfinite().all()
    assert next(built.model.model.multi_modal_projector.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (Gemma2Config(), "final_logit_softcapping"),
        (CohereConfig(), "logit_scale"),
        (GraniteConfig(logits_scaling=8.0), "logits_scaling"),
    ],
)
def test_models_that_work_on_their_logits_are_refused(config: PreTrainedConfig, key: str) -> None:
    with pytest.raises(ModelError, match=key):
        check_language(config, "some/model")


def test_neutral_settings_are_no_reason_to_refuse() -> None:
    for config in (GraniteConfig(logits_scaling=1.0), Gemma2Config(final_logit_softcapping=None), Qwen3Config()):
        check_language(config, "some/model")


def test_a_tower_in_place_of_a_language_model_is_told() -> None:
    with pytest.raises(ModelError, match="swapped"):
        check_language(tower("clip").config, "some/tower")


def test_a_class_that_answers_differently_is_found_by_its_answers() -> None:
    language = llama(400)
    other = llama(400, seed=1)
    with pytest.raises(ModelError, match="answers text differently"):
        check_same_answers(language, other)

    class Bounded(nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return 30 * torch.tanh(hidden / 30)

    language.lm_head.register_forward_hook(lambda module, inputs, output: Bounded()(output))
    check_same_answers(language, language)


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_the_image_token_takes_no_probability_from_text(tied: bool) -> None:
    tokenizer, language = tiny_tokenizer(), llama(300, tie_word_embeddings=tied)
    before_rows = len(language.get_input_embeddings().weight)
    ids = torch.randint(0, 300, (4, 12), generator=torch.Generator().manual_seed(0))
    before = language(input_ids=ids).logits
    token = add_image_token(tokenizer, language)
    after = language(input_ids=ids).logits
    assert tokenizer.convert_ids_to_tokens(token) == IMAGE_PLACEHOLDER
    assert after.shape[-1] == len(tokenizer) > before_rows
    assert torch.equal(after[..., :300], before)
    assert (after.softmax(-1)[..., 300:].max() <= 1 / 300).all()
    weights = [language.get_input_embeddings().weight, language.get_output_embeddings().weight]
    assert (weights[0] is weights[1]) == tied
    for weight in weights:
        assert torch.allclose(weight[300:], weight[:300].mean(0).expand(len(weight) - 300, -1), atol=1e-7)
    assert language.config.vocab_size == len(tokenizer)


@torch.no_grad()
def test_the_mean_row_goes_for_a_heads_bias_too() -> None:
    language = AutoModelForCausalLM.from_config(PhiConfig(**SMALL, vocab_size=300)).eval()
    nn.init.normal_(language.lm_head.bias)
    add_image_token(tiny_tokenizer(), language)
    logits = language(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert torch.allclose(logits[..., 300], logits[..., :300].mean(-1), atol=1e-5)


def test_a_place_in_the_vocabulary_that_is_there_is_taken() -> None:
    tokenizer, language = tiny_tokenizer(), llama(400)
    weight = language.get_input_embeddings().weight
    assert add_image_token(tokenizer, language) == tokenizer.get_vocab()[IMAGE_PLACEHOLDER]
    assert language.get_input_embeddings().weight is weight
    size = len(tokenizer)
    assert add_image_token(tokenizer, language) < size == len(tokenizer)


def test_added_rows_keep_the_dtype() -> None:
    language = llama(300).to(torch.bfloat16)
    add_image_token(tiny_tokenizer(), language)
    assert {p.dtype for p in language.parameters()} == {torch.bfloat16}


def in_nf4(tmp_path: Path) -> PreTrainedModel:
    """A small language model loaded in 4 bits, the way a recipe's base is."""
    llama(300, hidden_size=128, intermediate_size=256).save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head"],
    )
    language = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings, dtype=torch.float32)
    keep_trainable(language)
    return language


def test_a_quantised_language_model_makes_a_quantised_model(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    language = in_nf4(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = language(input_ids=ids).logits
    model: Any = assembled(language, "abstractor")
    assert model.is_loaded_in_4bit
    assert model.is_quantized
    assert model.hf_quantizer is language.hf_quantizer
    assert model.quantization_method == language.quantization_method
    assert model.config.quantization_config is language.config.quantization_config
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits[..., :300], before)
    assert {p.dtype for p in model.model.multi_modal_projector.parameters()} == {torch.float32}


def test_a_quantised_model_trains_through_peft(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    language = in_nf4(tmp_path)
    text = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        bare = language(input_ids=text).logits
    model: Any = assembled(language, "abstractor")
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    lora = LoraConfig(
        r=2,
        target_modules=r"model\.language_model\..*\.(q|v)_proj",
        modules_to_save=["model.multi_modal_projector"],
        lora_dropout=0.0,
    )
    peft: Any = get_peft_model(model, lora).eval()
    with torch.no_grad():
        assert torch.equal(peft(input_ids=text).logits[..., :300], bare)
    peft.train()
    ids = torch.tensor([[5, *[model.config.image_token_id] * 6, 7, 8]])
    peft(input_ids=ids, pixel_values=torch.rand(1, 3, SIDE, SIDE), labels=ids).loss.backward()
    trained = {name: p for name, p in peft.named_parameters() if p.requires_grad}
    assert any("lora_B" in name for name in trained)
    assert any("multi_modal_projector" in name and "query_tokens" in name for name in trained)
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
