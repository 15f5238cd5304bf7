"""What must be true of an adapter, and of the base it is put onto, before anything is made of them.

Usage: ``manifest = check_adapter(folder); check_fits(folder, manifest, base)``
"""

from __future__ import annotations

from pathlib import Path

from qlmm.artifacts.adapter.allowed_files import check_no_pickle
from qlmm.artifacts.adapter.load import check_base, check_files
from qlmm.artifacts.adapter.manifest import Manifest, read_manifest
from qlmm.artifacts.adapter.tensors import check_tensors
from qlmm.artifacts.adapter.verify import check_finite
from qlmm.core.errors import ModelError
from qlmm.model.loading.base import Base

__all__ = ["check_adapter", "check_fits"]


def check_adapter(folder: Path) -> Manifest:
    """Look at an adapter's own files; the base is not needed for it.

    Raises:
        ModelError: A001 to A003, A014, A015 for what is not a whole adapter.
    """
    manifest = read_manifest(folder)
    check_no_pickle(folder)
    check_files(folder, manifest)
    check_finite(folder)
    return manifest


def check_fits(folder: Path, manifest: Manifest, base: Base) -> None:
    """Compare the base within reach with the one that the adapter was trained on; no weight is read.

    Raises:
        ModelError: A004, A005, A017, A032 for another base.
    """
    check_base(manifest, base, commit=True)
    check_tensors(folder, manifest, base)
    _check_tokenizer(folder, base)


def _check_tokenizer(folder: Path, base: Base) -> None:
    """Refuse a base whose tokens mean something else than the adapter's."""
    ours, theirs = base.saved_processor(folder).tokenizer.get_vocab(), base.vocabulary
    if ours != theirs:
        apart = len(ours.items() ^ theirs.items())
        raise ModelError.one(
            "A032",
            f"the base's tokenizer differs from the one the adapter was trained with, in {apart} entries",
            help="fetch the base and the adapter again",
        )
