"""Steps whose loss or gradient is not finite: ended, skipped, or left to the loss scaler."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qlmm.core.errors import RunError
from qlmm.core.events import StepSkipped
from qlmm.training.trainers.base import MOST_SCALED, MOST_SKIPPED, PartsTrainer

NAN, INF = float("nan"), float("inf")


class _Trainer:
    """Stands for transformers' trainer: gives the norm it is asked for, and logs what it is given."""

    def _get_grad_norm(self, model: object, grad_norm: float | None = None) -> float | None:
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        vars(self)["state"].log_history.append({**logs, "step": 1})


class Steps(PartsTrainer, _Trainer):
    """A trainer without model and data."""

    def __init__(self, on_nonfinite: str, *, fp16: bool = False) -> None:
        training = SimpleNamespace(on_nonfinite=on_nonfinite)
        plan: Any = SimpleNamespace(recipe=SimpleNamespace(training=training))
        self._plan, self._wrong, self._in_a_row, self._step_loss, self._losses = plan, "", 0, 1.5, []
        self.state, self.args = SimpleNamespace(global_step=4, log_history=[]), SimpleNamespace(fp16=fp16)
        self.told: list[object] = []
        self.listener = self.told.append
        self.model = torch.nn.Linear(1, 1)

    def step(self, norm: float) -> torch.Tensor | None:
        """Take a step whose gradients have a norm; returns the gradient that is left to step by."""
        self.model.weight.grad = torch.ones(1, 1)
        self._get_grad_norm(self.model, torch.tensor(norm))
        return self.model.weight.grad


@pytest.mark.parametrize("norm", [NAN, INF])
def test_a_gradient_that_is_not_finite_ends_the_run(norm: float) -> None:
    with pytest.raises(RunError, match=rf"(?s)G002.*a gradient is {norm} at step 5; no weight was changed by it"):
        Steps("stop").step(norm)


def test_a_skipped_step_has_no_gradient_left_and_is_told() -> None:
    trainer = Steps("skip")
    assert trainer.step(NAN) is None
    assert trainer.told == [StepSkipped(5, "a gradient is nan at step 5")]
    assert trainer.step(1.0) is not None


def test_skipped_steps_end_the_run_when_there_are_too_many_in_a_row() -> None:
    trainer = Steps("skip")
    for norm in [*[NAN] * (MOST_SKIPPED - 1), 1.0, *[NAN] * (MOST_SKIPPED - 1)]:
        trainer.step(norm)
    with pytest.raises(RunError, match=f"the last of {MOST_SKIPPED} in a row that were not taken"):
        trainer.step(NAN)


def test_under_fp16_the_loss_scaler_skips_until_no_scale_is_left() -> None:
    trainer = Steps("stop", fp16=True)
    for norm in [*[INF] * (MOST_SCALED - 1), 1.0, *[INF] * (MOST_SCALED - 1)]:
        assert trainer.step(norm) is not None
    with pytest.raises(RunError, match=f"gradients of {MOST_SCALED} steps in a row are not finite"):
        trainer.step(INF)


def test_the_logged_loss_is_that_of_the_steps_taken_and_history_has_finite_numbers_alone() -> None:
    trainer = Steps("skip")
    trainer.step(1.0)
    trainer.step(NAN)
    trainer.log({"loss": 0.75, "entropy": NAN})
    trainer.step(NAN)
    trainer.log({"loss": 0.0, "entropy": 2.0})
    assert trainer.state.log_history == [{"loss": 1.5, "step": 1}, {"entropy": 2.0, "step": 1}]
