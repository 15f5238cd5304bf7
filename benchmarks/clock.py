"""Speed and memory of optimiser steps, measured alike whoever trains.

Usage: ``clock = Clock(); …  # clock.tick() after every step; clock.figures(tokens=1024)``
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from transformers import TrainerCallback

__all__ = ["Clock", "Timed"]


@dataclass
class Timed(TrainerCallback):
    """Steps of one run, of either tool: when each ended, on the clock and in seconds of all cores, and its loss.

    What a trainer does once, before its first step, is told apart.
    """

    made: float = field(default_factory=time.perf_counter)
    ends: list[float] = field(default_factory=list)
    worked: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clocks."""
        self._note()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """Note a step."""
        if "loss" in logs:
            self._note()
            self.losses.append(logs["loss"])

    def _note(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.worked.append(time.process_time())


# Steps that are not counted: kernels are chosen and memory is first taken in them.
WARM_UP = 3


class Clock:
    """Collects the ends of optimiser steps."""

    def __init__(self) -> None:
        self._ends: list[float] = []
        self._peaks: dict[str, int | None] = dict.fromkeys(("peak_before", "peak_step", "peak_step_reserved"))
        self._cuda = torch.cuda.is_available()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()

    def tick(self) -> None:
        """A step ended. After the warm-up the memory's peak starts anew: loading a model is not training it."""
        if self._cuda:
            torch.cuda.synchronize()
        self._ends.append(time.perf_counter())
        if self._cuda:
            self._look_at_memory()

    def _look_at_memory(self) -> None:
        if len(self._ends) <= WARM_UP:
            self._peaks["peak_before"] = torch.cuda.max_memory_allocated()
        else:
            self._peaks["peak_step"] = torch.cuda.max_memory_allocated()
            self._peaks["peak_step_reserved"] = torch.cuda.max_memory_reserved()
        if len(self._ends) == WARM_UP:
            torch.cuda.reset_peak_memory_stats()

    def figures(self, tokens: int) -> dict[str, Any]:
        """What a step takes, in seconds and in bytes of the GPU's memory (None on the CPU).

        Args:
            tokens: how many a step sees, visual ones included.

        Raises:
            ValueError: when there were too few steps to tell.
        """
        seconds = [end - begun for begun, end in pairwise(self._ends[WARM_UP - 1 :])]
        if not seconds:
            raise ValueError(f"{len(self._ends)} steps, of which {WARM_UP} are not counted, do not tell a speed")
        step = statistics.median(seconds)
        return {
            "tokens_per_step": tokens,
            "steps_timed": len(seconds),
            "step_s": round(step, 4),
            "tokens_per_s": round(tokens / step, 1),
            **{f"{name}_bytes": peak for name, peak in self._peaks.items()},
        }
