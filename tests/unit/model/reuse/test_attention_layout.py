"""Whether a mask can keep two answers apart is asked of a decoder's configuration first."""

from __future__ import annotations

import pytest
from transformers import Qwen3NextConfig

from qlmm.model.reuse.attention_layout import SharedPrefix
from tests.tiny import tiny_llava, tiny_processor


def test_layers_that_look_through_a_mask_alone_are_taken() -> None:
    model = tiny_llava(tiny_processor())
    assert SharedPrefix(model).objection is None
    model.get_decoder().config.layer_types = ["full_attention", "sliding_attention"]
    assert SharedPrefix(model).objection is None


@pytest.mark.parametrize("kind", ["linear_attention", "indexed_attention", "conv"])
def test_layers_that_carry_a_state_or_choose_for_themselves_are_not(kind: str) -> None:
    model = tiny_llava(tiny_processor())
    model.get_decoder().config.layer_types = ["full_attention", kind]
    assert kind in (SharedPrefix(model).objection or "")


def test_transformers_names_recurrent_layers_so() -> None:
    assert "linear_attention" in (Qwen3NextConfig().layer_types or ())
