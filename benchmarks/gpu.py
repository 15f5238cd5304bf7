"""The Owl recipe at 7B shape on one GPU: what a step costs, what memory it takes, and whether the proof holds.

CLIP ViT-L/14, abstractor and Llama-7B shape with random weights, stored in NF4, fine-tuned by the shipped recipe
`owl_lora` through the same function as `qlmm finetune`. Needs one CUDA GPU, 20 GB of disk, no network and no weights.
TRL's own trainer is measured on the same base and batches. `--tiny` runs the same code at a small shape anywhere.

Usage: ``python -m benchmarks.gpu``, or ``python -m benchmarks.gpu --tiny``
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.machine import RESULTS
from qlmm.cli.output.library_noise import quiet
from qlmm.core.files import free_bytes
from qlmm.core.units import memory

__all__ = ["main"]

DISK_BYTES = 20 * 2**30  # weights of 14 GB, a checkpoint, the adapter and its stage


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a small shape, which runs on any machine")
    parser.add_argument("--layers", type=int, help="layers of the language model (Llama-7B: 32)")
    parser.add_argument("--width", type=int, help="width of the language model, a multiple of 128 (Llama-7B: 4096)")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps, at least 5")
    parser.add_argument("--tokens", type=int, help="tokens of every row, visual ones included (1,024)")
    parser.add_argument("--batch", type=int, default=1, help="rows of a step")
    parser.add_argument("--minutes", type=float, default=7.0, help="no further stage is begun after so many")
    parser.add_argument("--folder", type=Path, help="where the temporary weights go (20 GB)")
    parser.add_argument("--results", type=Path, help="where the result goes; without it a tiny run writes none")
    return parser.parse_args(words)


def _refusal(asked: argparse.Namespace) -> str | None:
    """Why the benchmark cannot run here."""
    if asked.tiny:
        return None
    if not torch.cuda.is_available():
        return "this benchmark needs one CUDA GPU, and PyTorch sees none; --tiny runs the same code without one"
    free = free_bytes(asked.folder or Path(tempfile.gettempdir()))
    if free < DISK_BYTES:
        return f"not enough disk: {memory(free)} free, {memory(DISK_BYTES)} needed; name another place with --folder"
    return None


def _run(asked: argparse.Namespace, folder: Path) -> int:
    """The benchmark itself, imported when it is clear that it can run."""
    from benchmarks.owl import Bench, measure
    from benchmarks.shapes import OWL, TINY

    shape = TINY if asked.tiny else OWL
    bench = Bench(
        folder=folder,
        shape=replace(shape, layers=asked.layers or shape.layers, width=asked.width or shape.width),
        tokens=asked.tokens or (128 if asked.tiny else 1024),
        steps=asked.steps,
        batch=asked.batch,
        seconds=60 * asked.minutes,
        device="cuda" if torch.cuda.is_available() else "cpu",
        name="gpu-tiny" if asked.tiny else "gpu",
        results=asked.results or (None if asked.tiny else RESULTS),
    )
    return measure(bench)


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark: 0 when the proof holds, 1 when it does not, 2 when nothing was started."""
    asked = _arguments(words)
    if (refusal := _refusal(asked)) is not None:
        print(f"gpu: {refusal}", file=sys.stderr)
        return 2
    quiet()
    if asked.tiny:
        torch.set_num_threads(1)  # matrices this small gain nothing by threads, and on a busy machine lose much
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="qlmm-gpu-") as folder:
        return _run(asked, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
