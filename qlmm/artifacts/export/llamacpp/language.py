"""The language file: merged weights of the language model under llama.cpp's names, with its settings and tokenizer.

Usage: ``plan = plan_language(shape, folder, "f16"); plan.write(path, model)``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from qlmm.artifacts.export.llamacpp.file import OUTTYPES, Outtype, Stored, storage, write_gguf
from qlmm.artifacts.export.llamacpp.vocabulary import Vocabulary, read_vocabulary
from qlmm.core.errors import ModelError, UsageError

if TYPE_CHECKING:
    import gguf

__all__ = ["ARCHITECTURES", "Language", "paired", "plan_language"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What llama.cpp calls a language model.

    Attributes:
        name: in ``general.architecture``.
        pairs: it turns neighbouring values in rotary embeddings, where transformers turns halves; rows of queries and
            keys change places for that.
    """

    name: str
    pairs: bool


# By transformers' model_type of the text configuration.
ARCHITECTURES = {
    "llama": Architecture("llama", pairs=True),
    "mistral": Architecture("llama", pairs=True),
    "qwen2": Architecture("qwen2", pairs=False),
    "qwen3": Architecture("qwen3", pairs=False),
}
ROTARY = ("default", "linear", "llama3")
# llama.cpp computes the layers of all of these with it, whatever the file says.
ACTIVATION = "silu"
FILE_TYPES: dict[Outtype, str] = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
}


@dataclass(frozen=True, slots=True)
class Language:
    """All that is known of the file before any weight is read."""

    architecture: Architecture
    config: PreTrainedConfig
    names: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    vocabulary: Vocabulary
    template: str | None
    outtype: Outtype

    def tensors(self, model: PreTrainedModel) -> list[Stored]:
        """What goes into the file, from a model with its weights (or without, to plan)."""
        weights = model.state_dict()
        plain = [self._stored(ours, theirs, weights[ours]) for ours, theirs in self.names.items()]
        return [*plain, *_rotary_factors(self.config)]

    def _stored(self, ours: str, theirs: str, weight: Tensor) -> Stored:
        heads = self.config.num_attention_heads if ".q_proj." in ours else self.config.num_key_value_heads
        swaps = self.architecture.pairs and (".q_proj." in ours or ".k_proj." in ours)
        read: Callable[[], Tensor] = (lambda: paired(weight, heads)) if swaps else (lambda: weight)
        shape = tuple(weight.shape)
        return Stored(theirs, shape, storage(theirs, shape, self.outtype), read)

    def write(self, path: Path, model: PreTrainedModel) -> list[Stored]:
        """Write the file; what was written."""
        tensors = self.tensors(model)
        write_gguf(path, self.architecture.name, tensors, self._fill)
        return tensors

    def _fill(self, writer: gguf.GGUFWriter) -> None:
        import gguf

        config, width = self.config, _head_width(self.config)
        writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[self.outtype]])
        writer.add_vocab_size(len(self.vocabulary.tokens))
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
        self.vocabulary.add_to(writer)
        if self.template is not None:
            writer.add_chat_template(self.template)


def plan_language(shape: PreTrainedModel, folder: Path, outtype: str, template: str | None) -> Language:
    """Find names for every weight, and what else the file needs.

    Args:
        shape: the whole model; the meta device is enough.
        folder: where its tokenizer lies.
        outtype: how weights are stored.
        template: the chat template; None leaves it out.

    Raises:
        ModelError: E031 for a language model or a weight llama.cpp is not known to read, E030 for its tokenizer.
        UsageError: E032 for an unknown outtype.
    """
    kinds = {kind: kind for kind in OUTTYPES}
    if outtype not in kinds:
        raise UsageError.one("E032", f"--outtype: there is no {outtype}", help=f"known: {', '.join(OUTTYPES)}")
    config = shape.config.get_text_config(decoder=True)
    architecture = _architecture(config)
    names = _names(shape, config, architecture)
    weights = {name: tuple(weight.shape) for name, weight in shape.state_dict().items()}
    rows = shape.get_input_embeddings().weight.shape[0]
    return Language(
        architecture=architecture,
        config=config,
        names=names,
        shapes={name: weights[name] for name in names},
        vocabulary=read_vocabulary(folder, rows=rows),
        template=template,
        outtype=kinds[outtype],
    )


def _architecture(config: PreTrainedConfig) -> Architecture:
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise _unknown(f"the language model is of kind {config.model_type}")
    rotary = config.rope_parameters["rope_type"]
    if rotary not in ROTARY:
        raise _unknown(f"its rotary embeddings are of kind {rotary}")
    if config.hidden_act != ACTIVATION:
        raise _unknown(f"its activation is {config.hidden_act}, not {ACTIVATION}")
    return found


def _names(shape: PreTrainedModel, config: PreTrainedConfig, architecture: Architecture) -> dict[str, str]:
    """llama.cpp's name of each weight of the language model, as the ``gguf`` package knows it."""
    import gguf

    decoder = shape.get_decoder()
    prefix = next(name for name, module in shape.named_modules() if module is decoder)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    known = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tied = shape.get_output_embeddings().weight is shape.get_input_embeddings().weight
    names = {}
    for ours in shape.state_dict():
        if not ours.startswith((f"{prefix}.", "lm_head.")) or (ours.startswith("lm_head.") and tied):
            continue
        plain = ours if ours.startswith("lm_head.") else f"model.{ours.removeprefix(f'{prefix}.')}"
        theirs = known.get_name(plain, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise _unknown(f"llama.cpp's {architecture.name} has no weight for {ours}")
        names[ours] = theirs
    return names


def _unknown(why: str) -> ModelError:
    return ModelError.one(
        "E031",
        f"{why}, which qlmm cannot write as GGUF",
        help=f"known: {', '.join(ARCHITECTURES)} with {ACTIVATION} and rotary embeddings {', '.join(ROTARY)}. For "
        "another one give --converter with the path of llama.cpp's convert_hf_to_gguf.py, or export --to hf",
    )


def paired(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head in the order (0, n/2, 1, n/2+1, …), from halves to pairs."""
    rows = weight.shape[0] // heads
    return weight.reshape(heads, 2, rows // 2, -1).transpose(1, 2).reshape(weight.shape)


def _head_width(config: PreTrainedConfig) -> int:
    stated: Any = vars(config).get("head_dim")
    return int(stated or config.hidden_size // config.num_attention_heads)


def _rotary_factors(config: PreTrainedConfig) -> list[Stored]:
    """Llama 3's slower rotation of long waves, as divisors of each frequency (arXiv 2407.21783, section 3.4.1)."""
    rotary = config.rope_parameters
    if rotary["rope_type"] != "llama3":
        return []
    width = _head_width(config)
    frequencies = rotary["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    turns = rotary["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rotary["low_freq_factor"], rotary["high_freq_factor"]
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    factors = 1 / ((1 - smooth) / rotary["factor"] + smooth)
    return [Stored("rope_freqs.weight", tuple(factors.shape), "f32", lambda: factors)]
