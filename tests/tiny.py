"""Tiny real parts for tests: a tokenizer, a processor and a LLaVA that build in code, offline, in a moment.

Usage: ``processor = tiny_processor(); model = tiny_llava(processor)``
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

SIDE = 28
PATCH = 14
TOKENS_PER_IMAGE = (SIDE // PATCH) ** 2

TEMPLATES = Path(__file__).resolve().parents[1] / "qlmm" / "model" / "templates"

_WORDS = (" the", " a", " is", " what", " cat", " red", " user", " assistant", "user", "assistant", "the", "\n\n")
_WORDS += ("Human", "USER", "ASSIST", "ANT", " AI", "AI", ": ", " What", "What", " in", "ing", " on", "an")


def _byte_level() -> dict[int, str]:
    """GPT-2's table from bytes to printable characters."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in kept}
    for shift, byte in enumerate(byte for byte in range(256) if byte not in table):
        table[byte] = chr(256 + shift)
    return table


def _merges(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Left-to-right merges that turn each word of the list into one token; extends the vocabulary."""
    table = _byte_level()
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        letters = [table[byte] for byte in word.encode()]
        left = letters[0]
        for right in letters[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            vocabulary.setdefault(left, len(vocabulary))
    return merges


def tiny_tokenizer(*, pad_is_end: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text round-trips, a few words are single tokens.

    Args:
        pad_is_end: make padding and end of turn the same token, as SmolLM2 does.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: byte for byte, letter in _byte_level().items()}
    merges = _merges(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>"]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    end = "<|im_end|>" if pad_is_end else "</s>"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token=end,
        pad_token=end if pad_is_end else "<pad>",
        clean_up_tokenization_spaces=False,
    )


def template(name: str) -> str:
    """The text of a packaged chat template."""
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def tiny_processor(chat_template: str = "chatml", *, pad_is_end: bool = False) -> LlavaProcessor:
    """A LlavaProcessor whose pictures are 28 × 28 and take 4 tokens each.

    Args:
        chat_template: name of a packaged template.
        pad_is_end: see ``tiny_tokenizer``.
    """
    from transformers import CLIPImageProcessor, LlavaProcessor

    size = {"height": SIDE, "width": SIDE}
    pictures = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tiny_tokenizer(pad_is_end=pad_is_end),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(chat_template),
    )


def tiny_llava(processor: LlavaProcessor, *, seed: int = 0) -> LlavaForConditionalGeneration:
    """A LLaVA with random weights: CLIP of 2 layers × 32, Llama of 2 layers × 64."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=32,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=processor.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(config).eval()
