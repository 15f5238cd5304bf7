"""``qlmm merge``: an adapter and its base become one checkpoint, and what that cost is said.

Usage: ``merge("runs/owl_lora/adapter", Path("merged"), onto="trained", dtype="bf16", shard_size="5GB")``
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from rich.table import Table

from qlmm.artifacts.merge.fidelity import MergeError
from qlmm.artifacts.merge.merge import Dtype, Merged, Settings
from qlmm.artifacts.merge.merge import merge as make
from qlmm.cli.output.console import out as console
from qlmm.cli.output.library_noise import quiet
from qlmm.core.errors import UsageError
from qlmm.core.units import memory

__all__ = ["merge", "shard_bytes"]

UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(MB|GB|MiB|GiB)", re.IGNORECASE)


def merge(
    target: str,
    out: Path,
    *,
    onto: Literal["original", "trained"] = "trained",
    dtype: Dtype | None = None,
    shard_size: str | None = None,
    measured: bool = True,
) -> None:
    """Merge an adapter into its base and print what that cost.

    Args:
        target: an adapter folder, a run directory, or a Hub id.
        out: the folder to make.
        onto: the base to merge into.
        dtype: of the result; unset: as in the base's files.
        shard_size: largest file, such as 5GB; unset: as the base's files are cut.
        measured: whether the models are loaded to measure the difference.

    Raises:
        UsageError: U040 for a size that is none, and whatever stands against the merge.
    """
    settings = Settings(onto, dtype, shard_bytes(shard_size) if shard_size is not None else None, measured)
    quiet()
    _show(make(target, out, settings, console.talk))


def shard_bytes(text: str) -> int:
    """A file size as people write it, in bytes.

    Raises:
        UsageError: U040 when it is none.
    """
    found = SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * UNITS[found[2].upper()]) if found is not None else 0
    if size < UNITS["MB"]:
        raise UsageError.one("U040", f"--shard-size: `{text}` is no size of a file", help="such as 5GB or 500MB")
    return size


def _show(merged: Merged) -> None:
    if merged.error is None:
        console.print("what merging cost was not measured")
    else:
        console.screen(_table(merged.error))
        console.print(merged.error.advice)
    needs = "loads with transformers alone" if merged.plain else "loads with qlmm installed: its connector is qlmm's"
    console.print(f"{merged.folder}: {memory(merged.size_bytes)}, {needs}")


def _table(error: MergeError) -> Table:
    table = Table(box=None, pad_edge=False, caption=None)
    for head in ("merged onto", "largest difference of a logit", "mean", "KL, nats per token"):
        table.add_column(head)
    for place, one in enumerate(error.ways):
        written = " (written)" if place == 0 else ""
        table.add_row(f"{one.way}{written}", f"{one.largest:.3g}", f"{one.mean:.3g}", f"{one.divergence:.3g}")
    return table
