"""Held-out loss of several adapters on the same rows: what combining them has cost.

Usage: ``rows = held_out(manifest) or read_rows(Path("rows.jsonl")); losses = measure(folders, rows)``
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

from qlmm.artifacts.load import load
from qlmm.artifacts.manifest import Manifest
from qlmm.data.load import load_samples
from qlmm.data.sample import Sample
from qlmm.evaluation.heldout import HeldOut
from qlmm.model import builtin
from qlmm.recipe.schema import Source
from qlmm.training.plan import make_plan, measured

__all__ = ["held_out", "losses", "rows_of"]

ROWS = 64
BATCH = 4


def held_out(manifest: Manifest) -> tuple[Sample, ...]:
    """Rows that an adapter's run held out.

    Raises:
        QlmmError: when its data, or what it needs to encode them, cannot be had any more.
        OSError: the same.
    """
    section = manifest.recipe.adapter.model_copy(update={"start_from": None})
    return make_plan(manifest.recipe.model_copy(update={"adapter": section})).held_out[:ROWS]


def rows_of(path: Path, image_root: Path | None = None) -> tuple[Sample, ...]:
    """Rows of a file in any format that can be trained on; of pairs, the chosen answer counts.

    Raises:
        DataError: when it cannot be read.
    """
    source = Source(path=str(path), image_root=str(image_root) if image_root is not None else None)
    found = load_samples((source,), kind=None, resolve=builtin.path, check_pictures=True).samples
    return tuple(measured(row) for row in found)[:ROWS]


def losses(folders: Sequence[Path], rows: Sequence[Sample]) -> list[float]:
    """Loss of each adapter in nats per supervised token; one model is loaded at a time."""
    found = []
    for folder in folders:
        loaded = load(folder)
        found.append(HeldOut(rows, loaded.encoder, loaded.precision, BATCH).loss(loaded.model, rows))
        del loaded
        gc.collect()
    return found
