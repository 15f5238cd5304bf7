"""The rows that an adapter's run was trained on and held out.

Usage: ``rows = rows_of_run(folder, manifest, base); rows.held_out``
"""

from __future__ import annotations

from pathlib import Path

from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.core.errors import ModelError
from qlmm.model.loading.base import Base
from qlmm.training.rows import Rows, read_rows

__all__ = ["rows_of_run"]


def rows_of_run(folder: Path, manifest: Manifest, base: Base) -> Rows:
    """Read a run's rows again, with the adapter's own processor.

    Raises:
        DataError: when they cannot be read.
        ModelError: A037 when they have changed.
    """
    encoder, _ = base.encoder(manifest.recipe.data, base.saved_processor(folder))
    rows = read_rows(manifest.recipe, encoder)
    if rows.loaded.fingerprint != manifest.data.sha256:
        raise ModelError.one("A037", "the rows have changed since the run", help="put them back as they were")
    return rows
