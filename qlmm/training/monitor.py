"""What happens at each step besides training: events, evaluations, seals, and an orderly end on a signal.

Usage: ``Monitor(run, listener, recipe.training, every=100, evaluate=measure_at)`` as a callback of the trainer.
"""

from __future__ import annotations

import faulthandler
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qlmm.core.events import Listener, Saved, StepDone
from qlmm.core.signals import Stop
from qlmm.recipe.schema import TrainingSection
from qlmm.training.run_dir import RunDir

__all__ = ["Evaluate", "Monitor", "peak_memory_bytes"]

# Called with the step; measures held-out rows and passes on what it found.
Evaluate = Callable[[int], object]

# What an objective measures beside its loss, of all that TRL logs.
METRICS = (
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
    "kl", "entropy", "mean_token_accuracy", "nll_loss", "log_odds_ratio", "log_odds_chosen",
)  # fmt: skip


class Monitor(TrainerCallback):
    """Turns the trainer's hooks into events, seals what it saves, and stops it when asked to.

    Attributes:
        grad_norms: gives the gradient norms of the steps since its last call.
        stop: asks for an end, which comes once the step is taken, saved and sealed.
    """

    def __init__(
        self, run: RunDir, listener: Listener, training: TrainingSection, *, every: int, evaluate: Evaluate
    ) -> None:
        self._run, self._listener, self._every, self._evaluate = run, listener, every, evaluate
        self._keep, self._stall_s = training.keep, 60 * training.stall_minutes
        self.grad_norms: Callable[[], dict[str, float]] = dict
        self._rates: dict[str, float] = {}
        self.stop = Stop()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clocks; a checkpoint brings its own intervals along, and those of today's recipe count."""
        state.compute_steps(args, state.max_steps)
        self._watch()
        begun = time.monotonic()
        self._since, self._first = (begun, 0.0), (begun, state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **found: Any
    ) -> None:
        """Keep the rates of the step that is being taken: by the time it is logged, the next step's are set."""
        optimizer: torch.optim.Optimizer = found["optimizer"]
        self._rates = {group["part"]: group["lr"] for group in optimizer.param_groups}

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **found: Any) -> None:
        """Pass a step on as an event; the trainer's own summary at the end has no loss and is left out."""
        logs: dict[str, float] = found["logs"]
        if "loss" not in logs:
            return
        now, tokens = time.monotonic(), logs.get("num_tokens", 0.0)
        (then, tokens_then), (begun, first_step) = self._since, self._first
        self._since = (now, tokens)
        seconds_a_step = (now - begun) / max(state.global_step - first_step, 1)
        self._listener(
            StepDone(
                step=state.global_step,
                total=state.max_steps,
                loss=logs["loss"],
                rates=dict(self._rates),
                grad_norms=self.grad_norms(),
                tokens_per_s=max(tokens - tokens_then, 0.0) / max(now - then, 1e-9),
                memory_bytes=peak_memory_bytes(),
                seconds_left=seconds_a_step * (state.max_steps - state.global_step),
                metrics={name: logs[name] for name in METRICS if name in logs},
            )
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate where it is due, before a save of the same step; log the last step; obey a signal."""
        self._watch()
        if self.stop.save:
            self.stop.save, control.should_save = False, True
        if state.global_step >= state.max_steps or self.stop.by is not None:
            control.should_log = True
        if state.global_step % self._every == 0 and state.global_step < state.max_steps:
            self._evaluate(state.global_step)
            self._watch()
        if self.stop.by is not None:
            control.should_save = control.should_training_stop = True

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Give each forward pass the whole time."""
        self._watch()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop watching."""
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        """End the process with the stacks of all threads if nothing happens from here on.

        The watch needs no lock of Python, which a call that hangs may keep. Seals are whole at any moment.
        """
        # A notebook may have no such stream.
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(self._stall_s, exit=True, file=sys.__stderr__)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Seal the save, then let old checkpoints go."""
        folder = self._run.seal_checkpoint(state.global_step, self._keep, self._listener)
        self._listener(Saved(state.global_step, folder.name))


def peak_memory_bytes() -> int:
    """Peak memory so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    # Linux counts it in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
