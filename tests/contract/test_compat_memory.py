"""What qlmm relies on in private names when memory runs out: which errors say so, and what TRL counts meanwhile."""

from __future__ import annotations

import importlib
import inspect
import types
from operator import attrgetter

import pytest
import torch

from qlmm.compat import accelerate_private, trl_private


def test_memory_that_a_machine_lacks_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as lacking:
        torch.empty(2**60, dtype=torch.uint8)
    assert accelerate_private.should_reduce_batch_size(lacking.value)
    assert not accelerate_private.should_reduce_batch_size(RuntimeError("shapes cannot be multiplied"))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("trl:SFTTrainer", {"_metrics", "_total_train_tokens"}),
        ("trl:DPOTrainer", {"_metrics", "_total_train_tokens"}),
        ("trl:KTOTrainer", {"_metrics", "_total_train_tokens"}),
        ("trl.experimental.cpo:CPOTrainer", {"_stored_metrics"}),
        ("trl.experimental.orpo:ORPOTrainer", {"_stored_metrics"}),
    ],
)
def test_figures_of_a_trainer_are_forgotten(kind: str, names: set[str]) -> None:
    module, _, name = kind.partition(":")
    source = inspect.getsource(attrgetter(name)(importlib.import_module(module)).__init__)
    assert {one for one in ("_metrics", "_total_train_tokens", "_stored_metrics") if f"self.{one} =" in source} == names
    trainer = types.SimpleNamespace(_metrics={"loss": [1.0]}, _total_train_tokens=5)
    with trl_private.figures_kept(trainer):
        trainer._metrics["loss"].append(2.0)
        trainer._total_train_tokens += 9
    assert (trainer._metrics, trainer._total_train_tokens) == ({"loss": [1.0]}, 5)
