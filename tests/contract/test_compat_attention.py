"""A model's attention can be computed by a function for a while, with the masks that it has anyway."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from qlmm.compat.transformers_private import attention_by, attention_of


def test_a_model_attends_by_a_function_while_the_block_runs() -> None:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=8,
        attn_implementation="sdpa",
    )  # fmt: skip
    model, plain, asked = LlamaForCausalLM(config).eval(), AttentionInterface()["sdpa"], list[bool]()

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **how: Any) -> Any:
        asked.append(mask is not None)
        return plain(module, query, key, value, mask, **how)

    inputs = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    with torch.no_grad():
        before = model(**inputs).logits
        with attention_by(model.config, attend):
            inside = model(**inputs).logits
        after = model(**inputs).logits
    assert asked == [True, True]
    assert torch.equal(before, inside)
    assert torch.equal(before, after)
    assert attention_of(model.config) == "sdpa"
