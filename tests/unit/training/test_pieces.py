"""Which losses may be computed in pieces."""

from __future__ import annotations

import pytest

from qlmm.recipe.schema import TrainingSection
from qlmm.training.memory import out_of_memory
from qlmm.training.objective import objective


@pytest.mark.parametrize(
    ("name", "losses", "separable"),
    [
        ("sft", {}, True),
        ("dpo", {}, True),
        ("dpo", {"sigmoid": 0.8, "bco_pair": 0.2}, False),
        ("kto", {}, False),
        ("kto", {"apo_zero_unpaired": 1.0}, True),
        ("orpo", {}, False),
        ("simpo", {}, True),
    ],
)
def test_a_loss_that_compares_the_rows_of_a_batch_is_never_split(
    name: str, losses: dict[str, float], separable: bool
) -> None:
    assert objective(name).separable(TrainingSection(objective=name, losses=losses)) is separable


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
