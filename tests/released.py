"""A small mPLUG-Owl in the layout of the released checkpoints, with random weights, and its formulas by hand.

The layout is that of the released files, not that of our classes: names, fused layers, pickled shards with an index,
rotary tables, an inner width that the configuration has wrong, and configurations as transformers 4.28 wrote them.

Usage: ``released = write_owl(folder); released.image_inputs(pixels)``
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny import tiny_tokenizer

SIDE, PATCH, VISION, HEADS, INNER, QUERIES, TEXT, LAYERS = 28, 14, 32, 4, 48, 5, 64, 2
VOCABULARY = 350
# What PreTrainedConfig.to_dict wrote into every nested configuration.
OLD: dict[str, Any] = {
    "_name_or_path": "", "add_cross_attention": False, "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None, "diversity_penalty": 0.0, "do_sample": False, "early_stopping": False,
    "finetuning_task": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "is_decoder": False,
    "is_encoder_decoder": False, "length_penalty": 1.0, "max_length": 20, "min_length": 0, "num_beams": 1,
    "num_return_sequences": 1, "output_attentions": False, "output_hidden_states": False,
    "output_scores": False, "pruned_heads": {}, "remove_invalid_values": False, "repetition_penalty": 1.0,
    "return_dict": True, "return_dict_in_generate": False, "sep_token_id": None, "temperature": 1.0,
    "tf_legacy_loss": False, "tie_encoder_decoder": False, "tie_word_embeddings": False, "top_k": 50,
    "top_p": 1.0, "torch_dtype": None, "torchscript": False, "transformers_version": "4.28.1", "typical_p": 1.0,
    "use_bfloat16": False,
}  # fmt: skip


def _config() -> dict[str, Any]:
    tokenizer = tiny_tokenizer()
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    none = dict.fromkeys(special)
    vision = {"model_type": "mplug_owl_vision_model", "hidden_size": VISION, "intermediate_size": 64}
    vision |= {"projection_dim": 768, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_channels": 3}
    vision |= {"image_size": SIDE, "patch_size": PATCH, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-6}
    vision |= {"attention_dropout": 0.0, "initializer_factor": 1.0, "use_flash_attn": False}
    abstractor = {"model_type": "mplug_owl_visual_abstract", "hidden_size": VISION, "encoder_hidden_size": VISION}
    abstractor |= {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 2 * INNER}
    abstractor |= {"attention_probs_dropout_prob": 0.1, "layer_norm_eps": 1e-6}
    text = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": TEXT, "hidden_act": "silu"}
    text |= {"intermediate_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "rms_norm_eps": 1e-6}
    text |= {"max_position_embeddings": 2048, "vocab_size": VOCABULARY, "use_cache": True, "torch_dtype": "float16"}
    return {
        "architectures": ["MplugOwlForConditionalGeneration"],
        "model_type": "mplug-owl",
        "num_query_tokens": QUERIES,
        "vision_config": OLD | none | vision,
        "visual_abstractor_config": OLD | none | abstractor,
        "text_config": OLD | special | text,
        "torch_dtype": "bfloat16",
        "transformers_version": None,
    }


def _random(*shape: int, norm: bool = False) -> Tensor:
    return (1.0 if norm else 0.0) + 0.15 * torch.randn(*shape)


def _linear(name: str, out: int, into: int) -> dict[str, Tensor]:
    return {f"{name}.weight": _random(out, into), f"{name}.bias": _random(out)}


def _norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": _random(width, norm=True), f"{name}.bias": _random(width)}


def _weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    tokens = (SIDE // PATCH) ** 2 + 1
    at = "vision_model.embeddings."
    state = {"query_tokens": _random(1, QUERIES, VISION), f"{at}cls_token": _random(1, 1, VISION)}
    state |= {f"{at}position_embedding": _random(1, tokens, VISION)}
    state |= {f"{at}patch_embed.weight": _random(VISION, 3, PATCH, PATCH), **_norm(f"{at}pre_layernorm", VISION)}
    state |= _norm("vision_model.post_layernorm", VISION)
    for number in range(LAYERS):
        at = f"vision_model.encoder.layers.{number}."
        state |= _norm(f"{at}input_layernorm", VISION) | _norm(f"{at}post_attention_layernorm", VISION)
        state |= _linear(f"{at}self_attn.query_key_value", 3 * VISION, VISION)
        state |= _linear(f"{at}self_attn.dense", VISION, VISION)
        state |= _linear(f"{at}mlp.fc1", 64, VISION) | _linear(f"{at}mlp.fc2", VISION, 64)
        at = f"abstractor.encoder.layers.{number}.crossattention."
        for name in ("attention.query", "attention.key", "attention.value", "output.out_proj"):
            state |= _linear(at + name, VISION, VISION)
        for name, width in (
            ("norm1", VISION),
            ("normk", VISION),
            ("output.norm2", VISION),
            ("output.mlp.ffn_ln", INNER),
        ):
            state |= _norm(at + name, width)
        state |= _linear(f"{at}output.mlp.w1", INNER, VISION) | _linear(f"{at}output.mlp.w3", INNER, VISION)
        state |= _linear(f"{at}output.mlp.w2", VISION, INNER)
    state |= _linear("abstractor.visual_fc", TEXT, VISION) | {"abstractor.vit_eos": _random(1, 1, TEXT)}
    language = LlamaForCausalLM(_text()).state_dict()
    state |= {f"language_model.{name}": value * 4 for name, value in language.items()}
    table = "language_model.model.layers.{}.self_attn.rotary_emb.inv_freq"
    return state | {table.format(number): torch.ones(8) for number in range(LAYERS)}


def _text() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=TEXT, intermediate_size=128, num_hidden_layers=LAYERS, num_attention_heads=4, vocab_size=VOCABULARY
    )


@dataclass(frozen=True)
class Released:
    """A released checkpoint on disk, and what its formulas give."""

    folder: Path
    weights: dict[str, Tensor]

    def image_inputs(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) -> inputs of the language model (B, Q + 1, D), by the published formulas."""
        return self._abstractor(self.tower(pixels))

    def logits(self, embeddings: Tensor) -> Tensor:
        """The language model's answer to embeddings (B, N, D)."""
        model = LlamaForCausalLM(_text()).eval()
        state = {
            name.removeprefix("language_model."): value
            for name, value in self.weights.items()
            if name.startswith("language_model.") and not name.endswith("inv_freq")
        }
        model.load_state_dict(state)
        with torch.no_grad():
            answer: Tensor = model(inputs_embeds=embeddings).logits
        return answer

    def _linear(self, name: str, value: Tensor) -> Tensor:
        return functional.linear(value, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, value: Tensor, eps: float) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(value, weight.shape, weight, bias, eps)

    def tower(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) -> the tower's normalised tokens (B, T, V), by the published formulas."""
        at = "vision_model.embeddings."
        patches = functional.conv2d(pixels, self.weights[f"{at}patch_embed.weight"], stride=PATCH)
        cls = self.weights[f"{at}cls_token"].expand(pixels.shape[0], -1, -1)
        h = torch.cat([cls, patches.flatten(2).transpose(1, 2)], dim=1) + self.weights[f"{at}position_embedding"]
        h = self._norm(f"{at}pre_layernorm", h, 1e-6)
        for number in range(LAYERS):
            at = f"vision_model.encoder.layers.{number}."
            fused = self._linear(f"{at}self_attn.query_key_value", self._norm(f"{at}input_layernorm", h, 1e-6))
            # Rows of the fused layer: head, then query, key, value, then the head's width.
            query, key, value = fused.unflatten(-1, (HEADS, 3, VISION // HEADS)).permute(3, 0, 2, 1, 4)
            h = h + self._linear(f"{at}self_attn.dense", _attend(query, key, value))
            m = self._linear(f"{at}mlp.fc1", self._norm(f"{at}post_attention_layernorm", h, 1e-6))
            h = h + self._linear(f"{at}mlp.fc2", m * torch.sigmoid(1.702 * m))
        return self._norm("vision_model.post_layernorm", h, 1e-6)

    def _abstractor(self, image: Tensor) -> Tensor:
        h = self.weights["query_tokens"].expand(image.shape[0], -1, -1)
        for number in range(LAYERS):
            at = f"abstractor.encoder.layers.{number}.crossattention."
            n = self._norm(f"{at}norm1", h, 1e-5)
            keys = torch.cat([n, self._norm(f"{at}normk", image, 1e-5)], dim=1)
            query, key, value = (
                self._linear(f"{at}attention.{name}", of).unflatten(-1, (HEADS, -1)).transpose(1, 2)
                for name, of in (("query", n), ("key", keys), ("value", keys))
            )
            y = n + self._linear(f"{at}output.out_proj", _attend(query, key, value))
            m = self._norm(f"{at}output.norm2", y, 1e-5)
            gated = functional.silu(self._linear(f"{at}output.mlp.w1", m)) * self._linear(f"{at}output.mlp.w3", m)
            h = y + self._linear(f"{at}output.mlp.w2", self._norm(f"{at}output.mlp.ffn_ln", gated, 1e-6))
        eos = self.weights["abstractor.vit_eos"].expand(image.shape[0], -1, -1)
        return torch.cat([self._linear("abstractor.visual_fc", h), eos], dim=1)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, heads, N, d) over (B, heads, K, d) -> (B, N, heads * d)."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def write_owl(folder: Path) -> Released:
    """Write a checkpoint as it would be released: two pickled shards, their index, configurations, a tokenizer."""
    folder.mkdir(parents=True)
    weights = _weights()
    names = list(weights)
    files = {name: f"pytorch_model-0000{1 + 2 * place // len(names)}-of-00002.bin" for place, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({name: weights[name] for name in names if files[name] == file}, folder / file)
    index = {"metadata": {"total_size": sum(value.nbytes for value in weights.values())}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(_config()))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "transformers_version": "4.28.1"}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    pictures = {"do_center_crop": False, "do_normalize": True, "do_resize": True, "resample": 3, "crop_size": SIDE}
    pictures |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    pictures |= {"size": {"height": SIDE, "width": SIDE}, "image_processor_type": "MplugOwlImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    tiny_tokenizer().save_pretrained(folder)
    return Released(folder, weights)
