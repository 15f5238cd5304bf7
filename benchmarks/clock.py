"""Speed and memory of optimiser steps, measured alike whoever trains.

Usage: ``clock = Clock(); …  # clock.tick() after every step; clock.figures(tokens=1024)``
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

__all__ = ["Clock"]

# Steps that are not counted: kernels are chosen and memory is first taken in them.
WARM_UP = 3


class Clock:
    """Collects the ends of optimiser steps."""

    def __init__(self) -> None:
        self._ends: list[float] = []
        self._cuda = torch.cuda.is_available()
        self._before = 0
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()

    def tick(self) -> None:
        """A step ended. After the warm-up the memory's peak starts anew: loading a model is not training it."""
        if self._cuda:
            torch.cuda.synchronize()
        self._ends.append(time.perf_counter())
        if self._cuda and len(self._ends) == WARM_UP:
            self._before = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()

    def figures(self, tokens: int) -> dict[str, Any]:
        """What a step takes, in seconds and in bytes of the GPU's memory (None on the CPU).

        Args:
            tokens: how many a step sees, visual ones included.

        Raises:
            ValueError: when there were too few steps to tell.
        """
        counted = self._ends[WARM_UP - 1 :]
        seconds = [end - begun for begun, end in zip(counted, counted[1:], strict=False)]
        if not seconds:
            raise ValueError(f"{len(self._ends)} steps, of which {WARM_UP} are not counted, do not tell a speed")
        step = statistics.median(seconds)
        return {
            "tokens_per_step": tokens,
            "steps_timed": len(seconds),
            "step_s": round(step, 4),
            "tokens_per_s": round(tokens / step, 1),
            "peak_step_bytes": torch.cuda.max_memory_allocated() if self._cuda else None,
            "peak_step_reserved_bytes": torch.cuda.max_memory_reserved() if self._cuda else None,
            "peak_before_bytes": self._before if self._cuda else None,
        }
