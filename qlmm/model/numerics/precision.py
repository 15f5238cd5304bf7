"""Where and in what precision a run computes, decided once, before anything is loaded.

Usage: ``precision = choose("auto", "auto")  # Precision(device="cuda", compute=torch.bfloat16, …)``
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from qlmm.core.errors import ModelError

__all__ = ["Precision", "again", "choose"]

Device = Literal["auto", "cuda", "cpu"]
Name = Literal["auto", "bf16", "fp16", "fp32"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Precision:
    """Frozen weights are stored and everything is computed in `compute`; trained weights are always fp32."""

    device: Literal["cuda", "cpu"]
    name: Literal["bf16", "fp16", "fp32"]

    @property
    def compute(self) -> torch.dtype:
        """The dtype of frozen weights and of matrix products."""
        return _DTYPES[self.name]

    def autocast(self) -> AbstractContextManager[object]:
        """The context forward passes run in, so that fp32 masters compute in `compute`."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device, dtype=self.compute)


def choose(device: Device, name: Name) -> Precision:
    """A recipe's `training.device` and `training.precision` on this machine.

    Raises:
        ModelError: M001 when a GPU is demanded and there is none; M002 when the precision does not work here.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        help = "run `qlmm doctor` to see what PyTorch sees, or set training.device=auto to train on the CPU (slow)"
        raise ModelError.one("M001", "it is cuda, but PyTorch sees no CUDA GPU here", help=help, key="training.device")
    if device == "cpu" or not has_gpu:
        # fp16 has no CPU training path worth the name; bf16 is emulated without AVX-512 and far slower than fp32.
        if name == "fp16":
            help = "use auto, fp32 or bf16 on the CPU"
            raise ModelError.one("M002", "fp16 needs a GPU", help=help, key="training.precision")
        return Precision("cpu", "fp32" if name == "auto" else name)
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto":
        return Precision("cuda", "bf16" if has_bf16 else "fp16")
    if name == "bf16" and not has_bf16:
        raise ModelError.one("M002", "this GPU has no bf16", help="set training.precision=fp16 or auto")
    return Precision("cuda", name)


def again(name: Literal["bf16", "fp16", "fp32"]) -> Precision:
    """What a run computed in, where this machine can; else this machine's best."""
    try:
        return choose("auto", name)
    except ModelError:
        return choose("auto", "auto")
