"""``qlmm merge``: an adapter and its base become one checkpoint; what the merge costs is measured and printed."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qlmm.cli.arguments import Adapter, AsJson, Onto
from qlmm.cli.output.console import out
from qlmm.core.errors import UsageError
from qlmm.core.units import memory

if TYPE_CHECKING:
    from rich.table import Table

    from qlmm.artifacts.merge.fidelity import MergeError
    from qlmm.artifacts.merge.merge import Merged

__all__ = ["merge", "shard_bytes"]

EXAMPLE = "Example: qlmm merge runs/owl_lora/adapter merged --dtype bf16"
UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}


def merge(  # noqa: PLR0917  every parameter is an option of the command
    adapter: Adapter,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    onto: Onto = "trained",
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32"] | None,
        typer.Option(help="Of the merged weights; unset: as in the base's files."),
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Largest file, such as 5GB; unset: as the base's files.")
    ] = None,
    no_measure: Annotated[
        bool, typer.Option("--no-measure", help="Do not load the models to measure what merging costs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Merge an adapter into its base."""
    size = shard_bytes(shard_size) if shard_size is not None else None
    from qlmm.artifacts.merge.merge import Settings
    from qlmm.artifacts.merge.merge import merge as run

    merged = run(adapter, folder, Settings(onto, dtype, size, not no_measure), out.note)
    if as_json:
        out.json(asdict(merged) | {"folder": str(merged.folder)})
    else:
        _show(merged)


def shard_bytes(text: str) -> int:
    """A file size as people write it, in bytes; U040 for what is not one, or is below a megabyte."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(MB|GB|MIB|GIB)", text.strip().upper())
    size = int(float(found[1]) * UNITS[found[2]]) if found is not None else 0
    if size < UNITS["MB"]:
        raise UsageError.one("U040", f"--shard-size: `{text}` is not a file size", help="such as 5GB or 500MB")
    return size


def _show(merged: Merged) -> None:
    if merged.error is None:
        out.print("what merging cost was not measured")
    else:
        out.screen(_table(merged.error))
        out.print(merged.error.advice)
    needs = "loads with transformers alone" if merged.plain else "loads with qlmm installed: its connector is qlmm's"
    out.print(f"{merged.folder}: {memory(merged.size_bytes)}, {needs}")


def _table(error: MergeError) -> Table:
    from rich.table import Table

    table = Table(
        "merged onto", "largest difference of a logit", "mean", "KL, nats per token", box=None, pad_edge=False
    )
    for place, one in enumerate(error.ways):
        written = " (written)" if place == 0 else ""
        table.add_row(f"{one.way}{written}", f"{one.largest:.3g}", f"{one.mean:.3g}", f"{one.divergence:.3g}")
    return table
