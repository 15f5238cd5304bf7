"""The card of a merged model names its base, and nothing of the machine it was made on."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from qlmm.artifacts.merge.card import merge_card
from tests.tiny import tiny_llava, tiny_processor
from tests.unit.artifacts.adapters import manifest

FACTS = {"config_sha256": "aa", "revision": None}


def front(parts: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The metadata on top, and the whole card."""
    facts = manifest(base={"kind": "native", "parts": parts}, files={"adapter_model.safetensors": "a" * 64})
    text = merge_card(facts, "trained", None, tiny_llava(tiny_processor()), size=1 << 30)
    return yaml.safe_load(text.split("---")[1]), text


@pytest.mark.parametrize("place", ["/srv/secret/base", "~/secret/base", "C:\\secret\\base"])
def test_a_folder_of_this_machine_leaves_its_last_part_only(place: str) -> None:
    head, text = front({"model": FACTS | {"id": place}})
    assert "base_model" not in head
    assert "base_model_relation" not in head
    assert "secret" not in text
    assert "| model | `base` |" in text


def test_a_base_of_the_hub_is_named_as_the_hub_wants_it() -> None:
    head, text = front({"model": {"id": "some/model@0123abc", "revision": "0123abc", "config_sha256": "aa"}})
    assert head["base_model"] == ["some/model"]
    assert "| model | `some/model@0123abc` | 0123abc |" in text


def test_packaged_weights_are_named_in_the_table_alone() -> None:
    head, text = front({"vision": FACTS | {"id": "builtin:efficientnet-lite0"}})
    assert "base_model" not in head
    assert "`builtin:efficientnet-lite0`" in text
