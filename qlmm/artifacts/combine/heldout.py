"""Held-out loss of several adapters on the same rows: what combining them has cost.

Two runs that split the same file may each hold out rows that the other one learned from. Such rows are left out. Where
it cannot be known what an adapter was trained on, the result says so.

Usage: ``measure = measure_on(sources, base, Path("rows.jsonl")); measure.rows; measure.losses(folders)``
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

from qlmm.artifacts.adapter.load import load
from qlmm.artifacts.adapter.run_rows import rows_of_run
from qlmm.artifacts.combine.checks import Source
from qlmm.artifacts.combine.combine import Measure
from qlmm.builtin import registry as builtin
from qlmm.core.errors import QlmmError
from qlmm.data.reading.dataset import load_samples
from qlmm.data.sample import Example, Sample
from qlmm.evaluation.heldout import HeldOut
from qlmm.model.loading.base import Base
from qlmm.recipe import schema
from qlmm.training.rows import measured

__all__ = ["measure_on"]

ROWS = 64
BATCH = 4


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is known here of a run's rows; `unsure` says why it may have been trained on others too."""

    held_out: tuple[Sample, ...] = ()
    train: tuple[Example, ...] = ()
    unsure: str = ""


def measure_on(
    sources: Sequence[Source], base: Base, file: Path | None = None, image_root: Path | None = None
) -> Measure:
    """Rows that none of the adapters was trained on, as far as that is known, and how to measure on them.

    Args:
        sources: the adapters.
        base: their base.
        file: rows in any format that can be trained on; unset: those that the adapters' runs held out.
        image_root: where the pictures of these rows are.

    Raises:
        DataError: when the file cannot be read.
    """
    runs = {source.name: _rows(source, base) for source in sources}
    unsure = {name: run.unsure for name, run in runs.items() if run.unsure}
    if file is not None:
        rows, whose = _rows_of(file, image_root), f"of {file.name}"
    else:
        turns = zip_longest(*(run.held_out for run in runs.values()))
        rows, whose = [row for turn in turns for row in turn if row is not None], "that the runs held out"
    rows = list({row.content: row for row in rows}.values())
    if not rows:
        why = [f"{name}: {reason}" for name, reason in unsure.items()]
        return Measure("; ".join(["not measured: no row that a run held out can be read", *why]), None)
    # A pair and a conversation that begin alike ask the same.
    asked = {row.turns[:-1] for run in runs.values() for row in run.train}
    unseen = [row for row in rows if row.turns[:-1] not in asked]
    if not unseen:
        return Measure(f"not measured: adapters were trained on all {len(rows)} rows {whose}", None)
    chosen = unseen[:ROWS]
    said = f"{len(chosen)} {'row' if len(chosen) == 1 else 'rows'} {whose}"
    said += "" if unsure else ", on none of which an adapter was trained"
    said += f", without {len(rows) - len(unseen)} on which one was" if len(unseen) < len(rows) else ""
    doubts = [f"{name} may have been trained on some of them ({reason})" for name, reason in unsure.items()]
    return Measure("; ".join([said, *doubts]), partial(_losses, base=base, rows=chosen))


def _rows(source: Source, base: Base) -> _Rows:
    """The rows of an adapter's run, as far as they can be read here and are those of then."""
    if source.manifest.combined is not None:
        return _Rows(unsure="it was combined from others")
    try:
        rows = rows_of_run(source.folder, source.manifest, base)
    except (QlmmError, OSError) as error:
        # A message may name a folder of this machine, and this goes into a manifest.
        code = f" ({error.problems[0].code})" if isinstance(error, QlmmError) else ""
        return _Rows(unsure=f"its rows cannot be read{code}")
    unsure = "it continued an earlier adapter" if source.manifest.recipe.adapter.start_from is not None else ""
    return _Rows(tuple(measured(row) for row in rows.held_out), rows.train.samples, unsure)


def _rows_of(path: Path, image_root: Path | None) -> list[Sample]:
    """The rows of a file; of pairs, the chosen answer counts."""
    source = schema.Source(path=str(path), image_root=str(image_root) if image_root is not None else None)
    found = load_samples((source,), kind=None, resolve=builtin.path, check_pictures=True).samples
    return [measured(row) for row in found]


def _losses(folders: Sequence[Path], *, base: Base, rows: Sequence[Sample]) -> list[float]:
    """Loss of each adapter in nats per supervised token; one model is loaded at a time."""
    found = []
    for folder in folders:
        loaded = load(folder, base=base)
        found.append(HeldOut(rows, loaded.encoder, loaded.precision, BATCH).loss(loaded.model, rows))
        del loaded
        gc.collect()
    return found
