"""Held-out loss of several adapters on the same rows: what combining them has cost.

Two runs that split the same file may each hold out rows that the other one was trained on. Such rows are left out.
Where it cannot be known what an adapter was trained on, the result names the doubt.

Usage: ``chosen = rows_to_compare(sources, base); losses(folders, base, chosen.samples)``
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from qlmm.artifacts.adapter.load import load
from qlmm.artifacts.adapter.run_rows import rows_of_run
from qlmm.artifacts.combine.checks import Source
from qlmm.builtin import registry as builtin
from qlmm.core.errors import QlmmError
from qlmm.data.reading.dataset import load_samples
from qlmm.data.sample import Example, Sample
from qlmm.evaluation.heldout import HeldOut
from qlmm.model.loading.base import Base
from qlmm.recipe import schema
from qlmm.training.rows import measured

__all__ = ["Chosen", "losses", "rows_to_compare"]

ROWS = 64
BATCH = 4


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows that adapters are compared on; `words` describe them, or why there are none, without paths."""

    samples: Sequence[Sample]
    words: str


def rows_to_compare(
    sources: Sequence[Source], base: Base, file: Path | None = None, image_root: Path | None = None
) -> Chosen:
    """Rows that none of the adapters was trained on, as far as that is known.

    They are those of `file`, in any format that can be trained on, else those that the adapters' runs held out.

    Raises:
        DataError: when the file cannot be read.
    """
    runs = [_rows_of_run(source, base) for source in sources]
    unsure = {source.name: why for source, (_, _, why) in zip(sources, runs, strict=True) if why}
    if file is not None:
        found, whose = _rows_of_file(file, image_root), f"of {file.name}"
    else:
        turns = zip_longest(*(held_out for held_out, _, _ in runs))
        found, whose = [row for turn in turns for row in turn if row is not None], "that the runs held out"
    rows = list({row.content: row for row in found}.values())
    if not rows:
        why = [f"{name}: {reason}" for name, reason in unsure.items()]
        return Chosen((), "; ".join(["not measured: no row that a run held out can be read", *why]))
    # A pair and a conversation that begin alike ask the same.
    asked = {row.turns[:-1] for _, train, _ in runs for row in train}
    unseen = [row for row in rows if row.turns[:-1] not in asked]
    if not unseen:
        return Chosen((), f"not measured: adapters were trained on all {len(rows)} rows {whose}")
    chosen = unseen[:ROWS]
    words = f"{len(chosen)} {'row' if len(chosen) == 1 else 'rows'} {whose}"
    words += "" if unsure else ", on none of which an adapter was trained"
    words += f", without {len(rows) - len(unseen)} on which one was" if len(unseen) < len(rows) else ""
    doubts = [f"{name} may have been trained on some of them ({reason})" for name, reason in unsure.items()]
    return Chosen(chosen, "; ".join([words, *doubts]))


def losses(folders: Sequence[Path], base: Base, rows: Sequence[Sample]) -> list[float]:
    """Loss of each adapter in nats per supervised token; one model is loaded at a time."""
    found = []
    for folder in folders:
        loaded = load(folder, base=base)
        found.append(HeldOut(rows, loaded.encoder, loaded.precision, BATCH).loss(loaded.model, rows))
        del loaded
        gc.collect()
    return found


def _rows_of_run(source: Source, base: Base) -> tuple[Sequence[Sample], Sequence[Example], str]:
    """Rows that an adapter's run held out and was trained on, and why it may have been trained on others too."""
    if source.manifest.combined is not None:
        return (), (), "it was combined from others"
    try:
        rows = rows_of_run(source.folder, source.manifest, base)
    except (QlmmError, OSError) as error:
        # A message may name a folder of this machine, and this goes into a manifest.
        code = f" ({error.problems[0].code})" if isinstance(error, QlmmError) else ""
        return (), (), f"its rows cannot be read{code}"
    unsure = "it continued an earlier adapter" if source.manifest.recipe.adapter.start_from is not None else ""
    return [measured(row) for row in rows.held_out], rows.train.samples, unsure


def _rows_of_file(path: Path, image_root: Path | None) -> list[Sample]:
    """The rows of a file; of pairs, the chosen answer counts."""
    source = schema.Source(path=str(path), image_root=str(image_root) if image_root is not None else None)
    found = load_samples((source,), kind=None, resolve=builtin.path, check_pictures=True).samples
    return [measured(row) for row in found]
