"""What vLLM serves of a LoRA adapter: plain LoRA of linear layers, up to rank 512.

It refuses ``modules_to_save`` and DoRA (https://docs.vllm.ai/en/latest/api/vllm/lora/peft_helper/). PiSSA, OLoRA and
LoftQ also change the base, which vLLM loads as published.

Usage: ``reason = refused_lora(recipe.adapter); rank = max_lora_rank(recipe.adapter.r)``
"""

from __future__ import annotations

from qlmm.recipe.schema import AdapterSection

__all__ = ["RANKS", "max_lora_rank", "refused_lora", "refused_variant", "trained_whole"]

# What --max-lora-rank takes (https://docs.vllm.ai/en/stable/api/vllm/config/lora/).
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_SERVED = ("plain", "rslora")
_NAMES = {"dora": "DoRA", "pissa": "PiSSA", "olora": "OLoRA", "loftq": "LoftQ"}


def refused_variant(section: AdapterSection) -> str | None:
    """The name of a variant of LoRA that vLLM cannot serve; None for one that it can."""
    return None if section.variant in _SERVED else _NAMES[section.variant]


def refused_lora(section: AdapterSection) -> str | None:
    """Why vLLM cannot serve an adapter's LoRA; None where it can."""
    if (variant := refused_variant(section)) is not None:
        return f"the adapter's LoRA is {variant}, and vLLM serves plain LoRA only"
    if "experts" in section.targets:
        return "the adapter has LoRA in fused experts, which PEFT stores otherwise than vLLM reads it"
    if max_lora_rank(section.r) is None:
        return f"the adapter has rank {section.r}, and vLLM takes ranks up to {RANKS[-1]}"
    return None


def max_lora_rank(rank: int) -> int | None:
    """The smallest ``--max-lora-rank`` that takes a rank; None where none does."""
    return next((most for most in RANKS if most >= rank), None)


def trained_whole(section: AdapterSection) -> list[str]:
    """The parts outside the language model whose weights lie in ``modules_to_save``."""
    return [part for part, how in (("connector", section.connector), ("vision", section.vision)) if how == "full"]
