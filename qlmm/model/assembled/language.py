"""Which language models can be part of an assembled model, and the token that marks a picture's place.

An assembled model takes over the language model's stack and head. What a class does to the logits after the head would
be lost silently, so such models are refused: by their configuration before weights are read, and by comparing answers
once everything is put together.

Usage: ``check_language(config); image_token_id = add_image_token(tokenizer, language)``
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from qlmm.compat.transformers_models import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from qlmm.core.errors import ModelError

__all__ = [
    "IMAGE_PLACEHOLDER",
    "add_image_token",
    "check_language",
    "check_same_answers",
    "embedding_width",
    "word_statistics",
]

IMAGE_PLACEHOLDER = "<image>"

# Settings by which classes of transformers scale or bound the logits after the output head.
_AFTER_THE_HEAD = (
    "final_logit_softcapping",  # Gemma 2 and later
    "lm_head_multiplier",  # Falcon-H1
    "logit_scale",  # Cohere, MPT
    "logits_mup_width_multiplier",
    "logits_scaling",  # Granite, MiniCPM
    "logits_soft_cap",
    "output_logit_soft_cap",
    "output_multiplier",
)
_NEUTRAL = (None, False, 1)
_PROBE_LENGTH = 4
_SAME = 1e-3
_WORDS_ENOUGH = 4096


def check_language(config: PreTrainedConfig, source: str) -> None:
    """Refuse what cannot be the language model of an assembled one; ``source`` is its name, for the message.

    Raises:
        ModelError: M120 when it is not a causal language model, M121 when its class works on the logits after the head.
    """
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        message = f"{source} is not a causal language model (it is {config.model_type})"
        help = "are base.vision and base.language swapped? A whole vision-language model goes into base.model"
        raise ModelError.one("M120", message, help=help, key="base.language")
    stated = config.get_text_config().to_dict()
    for key in _AFTER_THE_HEAD:
        if stated.get(key) not in _NEUTRAL:
            raise ModelError.one(
                "M121",
                f"{source} has {key}={stated[key]}: its logits are changed after the output head, "
                "which an assembled model cannot do",
                help="choose a language model without it (Llama, Qwen, Mistral, SmolLM, Phi …)",
                key="base.language",
            )


def embedding_width(language: PreTrainedModel) -> int:
    """Width D of the language model's input embeddings; a few models (OPT-350m) compute in another one."""
    return int(language.get_input_embeddings().weight.shape[1])


def add_image_token(tokenizer: PreTrainedTokenizerBase, language: PreTrainedModel) -> int:
    """Give tokenizer and language model the token that marks a picture's place, unless they have it; returns its id.

    Its input row is never read, since features take its place. Its output row is the mean of all rows: its logit is
    then the mean of the others, and by Jensen's inequality it gets at most 1/V of the probability.
    """
    known = IMAGE_PLACEHOLDER in tokenizer.get_vocab()
    if not known or len(tokenizer.encode(IMAGE_PLACEHOLDER, add_special_tokens=False)) != 1:
        tokenizer.add_tokens([IMAGE_PLACEHOLDER], special_tokens=True)
    if len(tokenizer) > language.get_input_embeddings().weight.shape[0]:
        _add_mean_rows(language, len(tokenizer))
    return int(tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER))


@torch.no_grad()
def word_statistics(language: PreTrainedModel) -> tuple[Tensor, float]:
    """Mean (D) of the input embeddings, and their standard deviation around it."""
    table = language.get_input_embeddings().weight
    # A few thousand rows are enough; large vocabularies in fp32 would not fit beside the model.
    words = table[:: max(1, table.shape[0] // _WORDS_ENOUGH)].float()
    return words.mean(0).cpu(), float(words.var(0, correction=0).mean().sqrt())


@torch.no_grad()
def _add_mean_rows(language: PreTrainedModel, rows: int) -> None:
    """Grow embeddings and head to so many rows; in quantised models both stay 16-bit. Means are summed in fp32."""

    def tables() -> Iterator[Tensor]:
        for module in (language.get_input_embeddings(), language.get_output_embeddings()):
            yield from module.parameters()

    means = [table.mean(0, dtype=torch.float32) for table in tables()]
    old = language.get_input_embeddings().weight.shape[0]
    language.resize_token_embeddings(rows, mean_resizing=False)
    for table, mean in zip(tables(), means, strict=True):
        table[old:] = mean


@torch.no_grad()
def check_same_answers(language: PreTrainedModel, assembled: PreTrainedModel) -> None:
    """Compare a few tokens' logits of the assembled model with the bare language model's; raises M122 when they differ.

    This finds every class that does something around its stack (scaled embeddings, per-layer inputs, bounded logits),
    also where its configuration does not show it.
    """
    embeddings = language.get_input_embeddings().weight
    ids = torch.arange(1, 1 + _PROBE_LENGTH, device=embeddings.device)[None] % embeddings.shape[0]
    bare = language(input_ids=ids, use_cache=False).logits.float()
    ours = assembled(input_ids=ids, use_cache=False).logits.float()
    if (bare - ours).abs().max() > _SAME * bare.abs().max():
        message = f"{type(language).__name__} answers text differently once it is assembled"
        help = "its class does more than stack and head; choose another language model (Llama, Qwen, Mistral …)"
        raise ModelError.one("M122", message, help=help, key="base.language")
