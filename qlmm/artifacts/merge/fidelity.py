"""The cost of merging: a merged model against the adapter on its base, in logits and in nats per token.

Rows are those of the adapter's probe and, where they can still be read, rows that the run held out.

Usage: ``error = measure(folder, manifest, base, merged_folder, "trained", other=outputs, tell=tell)``
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel

import qlmm.model.assembled.model  # noqa: F401  makes assembled checkpoints known to transformers
from qlmm.artifacts.adapter.load import load
from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.adapter.run_rows import rows_of_run
from qlmm.artifacts.merge.deltas import Way
from qlmm.artifacts.safetensors_stream import Output, Reader
from qlmm.core.errors import ModelError, QlmmError
from qlmm.core.filenames import PROBE
from qlmm.data.encoding.encoder import IGNORED
from qlmm.data.sample import Sample
from qlmm.model.loading.base import Base
from qlmm.model.numerics.precision import Precision
from qlmm.model.token_losses import supervised
from qlmm.proof.probe import check_answers, probe_rows
from qlmm.training.rows import measured

__all__ = ["MergeError", "WayError", "measure"]

HELD_OUT = 8
TOKENS = 64  # of a row, at most: logits of both models are kept, and vocabularies are large
# Below this a difference is that of rounding, and both ways are as good.
NATS_THAT_MATTER = 1e-4

Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class WayError:
    """How far a merged model is from base and adapter.

    Attributes:
        largest: largest absolute difference of logits; `mean` is over all of them.
        divergence: mean of KL(adapter || merged), in nats per token.
    """

    way: Way
    largest: float
    mean: float
    divergence: float


@dataclass(frozen=True, slots=True)
class MergeError:
    """Both ways measured on the same rows; the first is the one that was written, and alone where they are the same."""

    ways: tuple[WayError, ...]
    rows: int
    held_out: int
    tokens: int

    @property
    def advice(self) -> str:
        """Which way to choose, in a sentence."""
        if len(self.ways) == 1:
            return "both ways are the same here: the run stored the base as its files have it"
        best, worse = sorted(self.ways, key=lambda one: one.divergence)
        if worse.divergence - best.divergence < NATS_THAT_MATTER:
            return f"both ways are within {NATS_THAT_MATTER:g} nats per token of each other: either will do"
        return (
            f"recommended: --onto {best.way}, which is closer to the adapter "
            f"({best.divergence:.2g} against {worse.divergence:.2g} nats per token)"
        )


def measure(
    folder: Path,
    manifest: Manifest,
    base: Base,
    merged: Path,
    way: Way,
    *,
    other: Sequence[Output] | None,
    tell: Callable[[str], None],
) -> MergeError:
    """Compare the model in the folder `merged`, and then the other way, with base and adapter.

    `other` has the tensors of the other way; it is None where both are the same.

    Raises:
        ModelError: A016 when base and adapter do not answer as recorded, A035 when no row is left, A036 when the
            merged model's logits are not finite.
    """
    held_out = _held_out(folder, manifest, base, tell)
    rows = [*(probe_rows(folder) if (folder / PROBE).is_file() else ()), *held_out]
    if not rows:
        message = "there is no row to measure with: the adapter has no probe, and the run's rows cannot be read again"
        raise ModelError.one("A035", message, help="merge with --no-measure")
    tell("measuring base and adapter")
    batches, expected, precision = _reference(folder, base, rows)
    gc.collect()
    tell("measuring the merged model")
    model: Any = AutoModelForImageTextToText.from_pretrained(
        merged,
        dtype=precision.compute,
        device_map={"": 0} if precision.device == "cuda" else None,
        trust_remote_code=False,
    )
    ways = [_compare(way, model.eval(), batches, expected, precision)]
    if other is not None:
        tell("measuring the other way")
        _fill(model, other)
        ways.append(_compare("original" if way == "trained" else "trained", model, batches, expected, precision))
    return MergeError(tuple(ways), len(rows), len(held_out), sum(len(logits) for logits in expected))


def _held_out(folder: Path, manifest: Manifest, base: Base, tell: Callable[[str], None]) -> tuple[Sample, ...]:
    """Rows that the run held out, as long as its data are still there and the same."""
    tell("looking for the run's held-out rows")
    try:
        rows = rows_of_run(folder, manifest, base)
    except (QlmmError, OSError) as error:
        why = error.text if isinstance(error, QlmmError) else str(error)
        tell(f"the run's held-out rows cannot be had any more ({why}); only the probe's are compared")
        return ()
    return tuple(measured(row) for row in rows.held_out[:HELD_OUT])


def _reference(folder: Path, base: Base, rows: Sequence[Sample]) -> tuple[list[Batch], list[Tensor], Precision]:
    """Encoded rows, and the logits of base and adapter, which are let go of afterwards."""
    loaded = load(folder, base=base)
    if (folder / PROBE).is_file():
        check_answers(folder, loaded.model, loaded.encoder, loaded.precision)
    batches = [loaded.encoder.batch([row]) for row in rows]
    return batches, [_logits(loaded.model, batch, loaded.precision) for batch in batches], loaded.precision


@torch.no_grad()
def _logits(model: nn.Module, batch: Batch, precision: Precision) -> Tensor:
    """Logits (supervised tokens, vocabulary) of a row's first tokens, in fp32 on the host."""
    inputs = {name: value.to(precision.device) for name, value in batch.items()}
    labels = inputs.pop("labels")
    learned = labels.ne(IGNORED)
    labels = labels.masked_fill(learned & (learned.cumsum(1) > TOKENS), IGNORED)
    with precision.autocast():
        logits, _ = supervised(model, inputs, labels)
    return logits.float().cpu()


def _compare(
    way: Way, model: nn.Module, batches: Sequence[Batch], expected: Sequence[Tensor], precision: Precision
) -> WayError:
    largest = total = divergence = 0.0
    values = tokens = 0
    for batch, wanted in zip(batches, expected, strict=True):
        found = _logits(model, batch, precision)
        apart = (found - wanted).abs()
        if not torch.isfinite(apart).all():
            help = "merge with --dtype bf16 or fp32, and check the adapter with qlmm verify"
            raise ModelError.one("A036", f"logits of the model merged onto the {way} base are not finite", help=help)
        largest, total = max(largest, float(apart.max())), total + float(apart.sum(dtype=torch.float64))
        log_p, log_q = wanted.double().log_softmax(1), found.double().log_softmax(1)
        divergence += float((log_p.exp() * (log_p - log_q)).sum())
        values, tokens = values + apart.numel(), tokens + len(apart)
    return WayError(way, largest, total / max(1, values), divergence / max(1, tokens))


@torch.no_grad()
def _fill(model: PreTrainedModel, outputs: Sequence[Output]) -> None:
    """Put the tensors of the other way into the model, one at a time."""
    state = model.state_dict()
    with Reader() as reader:
        for one in outputs:
            state[one.name].copy_(one.make(reader))
