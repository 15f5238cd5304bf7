"""Whether a mask can keep two answers apart is asked of a decoder's configuration first."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3NextConfig

from qlmm.model.reuse.attention_layout import AttentionLayout, LayoutHooks
from tests.tiny import tiny_llava, tiny_processor


def test_layers_that_look_through_a_mask_alone_are_taken() -> None:
    model = tiny_llava(tiny_processor())
    assert LayoutHooks(model).objection is None
    model.get_decoder().config.layer_types = ["full_attention", "sliding_attention"]
    assert LayoutHooks(model).objection is None


@pytest.mark.parametrize("kind", ["linear_attention", "indexed_attention", "conv"])
def test_layers_that_carry_a_state_or_choose_for_themselves_are_not(kind: str) -> None:
    model = tiny_llava(tiny_processor())
    model.get_decoder().config.layer_types = ["full_attention", kind]
    assert kind in (LayoutHooks(model).objection or "")


def test_transformers_names_recurrent_layers_so() -> None:
    assert "linear_attention" in (Qwen3NextConfig().layer_types or ())


def test_a_layout_says_who_sees_whom_and_where_tokens_stand() -> None:
    """Two conversations packed into one row, of which the second begins at its own start."""
    layout = AttentionLayout(
        segments=torch.tensor([[0, 0, 1, 1]]), sees=torch.eye(2).bool(), positions=torch.tensor([[0, 1, 0, 1]])
    )
    assert layout.hidden()[0, 0].int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert layout.placed(None).tolist() == [[0, 1, 0, 1]]
    # Positions of several kinds (M-RoPE) for all rows at once.
    kinds = torch.tensor([[[5, 6, 7, 8]], [[1, 1, 2, 2]]])
    assert layout.placed(kinds).tolist() == [[[5, 6, 5, 6]], [[1, 1, 1, 1]]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_two_rows_in_one_are_the_two_rows(attention: str) -> None:
    model = tiny_llava(tiny_processor()).eval()
    model.set_attn_implementation(attention)
    hooks = LayoutHooks(model)
    one, other = torch.tensor([[5, 6, 7]]), torch.tensor([[9, 8, 7, 6]])
    apart = [model(input_ids=ids).logits[0] for ids in (one, other)]
    layout = AttentionLayout(
        segments=torch.tensor([[0, 0, 0, 1, 1, 1, 1]]),
        sees=torch.eye(2).bool(),
        positions=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]),
    )
    with hooks.applied(layout, torch.arange(7)[None]):
        together = model(input_ids=torch.cat([one, other], dim=1)).logits[0]
    assert torch.allclose(together, torch.cat(apart), atol=1e-5)
