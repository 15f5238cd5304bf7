"""Merging keeps what base and adapter say, whatever a family calls its tensors in its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlmm.training.plan import make_plan
from tests.families.build import family, save
from tests.families.matrix import keys_of, recipe_for, write_rows
from tests.families.merging import TOLERANCE, merged_equals
from tests.families.videos import videos_stood_in


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl", "gemma3", "paligemma"])
def test_a_merged_model_says_what_base_and_adapter_say(name: str, tmp_path: Path) -> None:
    one = family(name)
    with videos_stood_in():
        save(one, tmp_path / "base")
        write_rows(tmp_path)
        plan = make_plan(recipe_for(tmp_path, "none", *keys_of(one)))
        assert merged_equals(plan, tmp_path) <= TOLERANCE
