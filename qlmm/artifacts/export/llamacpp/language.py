"""The language file: merged weights of the language model under llama.cpp's names, with its settings and tokenizer.

Usage: ``planned = plan_language(shape, folder, "f16", template); planned.write(path, model)``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from qlmm.artifacts.export.llamacpp.file import OUTTYPES, GgufFile, Stored
from qlmm.artifacts.export.llamacpp.vocabulary import Vocabulary, read_vocabulary
from qlmm.core.errors import ModelError, UsageError

if TYPE_CHECKING:
    import gguf

__all__ = ["ARCHITECTURES", "paired", "plan_language"]

# In ``general.architecture``, by transformers' model_type of the text configuration.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
# Rotary embeddings of these turn neighbouring values, where transformers turns halves: rows of queries and keys change
# places for that.
PAIRS = frozenset({"llama"})
ROTARY = ("default", "linear", "llama3")
# llama.cpp computes the layers of all of these with it, and does not ask the file.
ACTIVATION = "silu"
NO_TEMPLATE = (
    "the chat template takes messages as lists of parts, which llama.cpp does not pass: it is left out, so give "
    "llama.cpp one with --chat-template"
)


def plan_language(shape: PreTrainedModel, folder: Path, outtype: str, template: str | None) -> GgufFile:
    """Find names for every weight of a model, which may be on the meta device, and read the folder's tokenizer.

    Raises:
        ModelError: E031 for a language model or a weight llama.cpp is not known to read, E030 for its tokenizer.
        UsageError: E032 for an unknown outtype.
    """
    kind = next((known for known in OUTTYPES if known == outtype), None)
    if kind is None:
        raise UsageError.one("E032", f"--outtype: there is no {outtype}", help=f"known: {', '.join(OUTTYPES)}")
    config = shape.config.get_text_config(decoder=True)
    architecture = _architecture(config)
    names = _names(shape, config, architecture)
    vocabulary = read_vocabulary(folder, rows=shape.get_input_embeddings().weight.shape[0])
    return GgufFile(
        architecture,
        kind,
        names,
        fill=partial(_fill, config=config, vocabulary=vocabulary, template=template),
        drops=(NO_TEMPLATE,) if template is None else (),
        reordered=_in_pairs(names, config) if architecture in PAIRS else {},
        computed=_rotary_factors(config),
    )


def _fill(writer: gguf.GGUFWriter, config: PreTrainedConfig, vocabulary: Vocabulary, template: str | None) -> None:
    import gguf

    width = _head_width(config)
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    vocabulary.add_to(writer)
    if template is not None:
        writer.add_chat_template(template)


def _architecture(config: PreTrainedConfig) -> str:
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise _unknown(f"the language model is of kind {config.model_type}")
    rotary = config.rope_parameters["rope_type"]
    if rotary not in ROTARY:
        raise _unknown(f"its rotary embeddings are of kind {rotary}")
    if config.hidden_act != ACTIVATION:
        raise _unknown(f"its activation is {config.hidden_act}, not {ACTIVATION}")
    return found


def _names(shape: PreTrainedModel, config: PreTrainedConfig, architecture: str) -> dict[str, str]:
    """llama.cpp's name of each weight of the language model, as the ``gguf`` package knows it."""
    import gguf

    decoder = shape.get_decoder()
    prefix = next(name for name, module in shape.named_modules() if module is decoder)
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    tied = shape.get_output_embeddings().weight is shape.get_input_embeddings().weight
    names = {}
    for ours in shape.state_dict():
        if not ours.startswith((f"{prefix}.", "lm_head.")) or (ours.startswith("lm_head.") and tied):
            continue
        plain = ours if ours.startswith("lm_head.") else f"model.{ours.removeprefix(f'{prefix}.')}"
        theirs = known.get_name(plain, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise _unknown(f"llama.cpp's {architecture} has no weight for {ours}")
        names[ours] = theirs
    return names


def _unknown(why: str) -> ModelError:
    return ModelError.one(
        "E031",
        f"{why}, which qlmm cannot write as GGUF",
        help=f"known: {', '.join(ARCHITECTURES)} with {ACTIVATION} and rotary embeddings {', '.join(ROTARY)}. For "
        "another one give --converter with the path of llama.cpp's convert_hf_to_gguf.py, or export --to hf",
    )


def _in_pairs(names: Iterable[str], config: PreTrainedConfig) -> dict[str, Callable[[Tensor], Tensor]]:
    heads = {".q_proj.": config.num_attention_heads, ".k_proj.": config.num_key_value_heads}
    return {name: partial(paired, heads=count) for name in names for part, count in heads.items() if part in name}


def paired(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head in the order (0, n/2, 1, n/2+1, …), from halves to pairs."""
    rows = weight.shape[0] // heads
    return weight.reshape(heads, 2, rows // 2, -1).transpose(1, 2).reshape(weight.shape)


def _head_width(config: PreTrainedConfig) -> int:
    stated: Any = vars(config).get("head_dim")
    return int(stated or config.hidden_size // config.num_attention_heads)


def _rotary_factors(config: PreTrainedConfig) -> tuple[Stored, ...]:
    """Llama 3's slower rotation of long waves, as divisors of each frequency (arXiv 2407.21783, section 3.4.1)."""
    rotary = config.rope_parameters
    if rotary["rope_type"] != "llama3":
        return ()
    width = _head_width(config)
    frequencies = rotary["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    turns = rotary["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rotary["low_freq_factor"], rotary["high_freq_factor"]
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    factors = 1 / ((1 - smooth) / rotary["factor"] + smooth)
    return (Stored("rope_freqs.weight", tuple(factors.shape), "f32", lambda: factors),)
