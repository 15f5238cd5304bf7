"""What qlmm relies on in transformers' callbacks for trackers: found by name, and made only when they are called."""

from __future__ import annotations

from typing import get_args

import pytest
from transformers import TrainerCallback

from qlmm.compat.transformers_private import tracker_kind
from qlmm.recipe.schema import OutputSection

(NAMED, _) = get_args(OutputSection.model_fields["trackers"].annotation)


@pytest.mark.parametrize("name", get_args(NAMED))
def test_every_tracker_of_a_recipe_has_a_callback_that_is_not_made_yet(name: str) -> None:
    kind = tracker_kind(name)
    assert issubclass(kind, TrainerCallback)
    assert name in kind.__name__.lower()
