"""``qlmm combine``: several adapters of one base become one; what each of them loses is measured on the same rows.

Usage: ``qlmm combine runs/a runs/b --weights 0.5,0.5 --out both``
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qlmm.cli.arguments import AsJson
from qlmm.cli.output.console import out, visible
from qlmm.core.errors import UsageError

if TYPE_CHECKING:
    from qlmm.artifacts.combine.combine import Combined

__all__ = ["combine", "read_weights"]

EXAMPLE = "Example: qlmm combine runs/a runs/b --weights 0.5,0.5 --out both"


def combine(  # noqa: PLR0917  every parameter is an option of the command
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER ADAPTER...", help="Folders, runs, Hub ids or zoo:NAMEs, of one base."),
    ],
    weights: Annotated[
        str, typer.Option("--weights", metavar="W,W...", help="One number per adapter, in their order.")
    ],
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="The adapter folder to make.")],
    method: Annotated[
        Literal["cat", "linear", "ties"],
        typer.Option("--method", help="How LoRA is combined; cat is the exact sum."),
    ] = "cat",
    density: Annotated[float, typer.Option("--density", help="Share of values that ties keeps.")] = 0.5,
    rows: Annotated[
        Path | None,
        typer.Option("--rows", metavar="FILE", help="Rows to measure on; unset: those the runs held out."),
    ] = None,
    image_root: Annotated[
        Path | None,
        typer.Option("--image-root", metavar="FOLDER", help="Folder that the rows' picture paths start from."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Combine adapters of one base into one."""
    numbers = read_weights(weights)
    from qlmm.artifacts.combine.combine import Settings
    from qlmm.artifacts.combine.combine import combine as run
    from qlmm.artifacts.combine.heldout import measure_on

    measuring = partial(measure_on, file=rows, image_root=image_root)
    made = run(adapters, folder, Settings(method, numbers, density), measuring=measuring, tell=out.talk)
    if as_json:
        facts = {"folder": str(made.folder), "rank": made.rank, "losses": dict(made.losses), "rows": made.rows}
        out.json(facts | {"max_difference": made.proof.max_difference})
    else:
        _show(made)


def read_weights(text: str) -> tuple[float, ...]:
    """Numbers with commas between them.

    Raises:
        UsageError: K002 when the text is something else.
    """
    try:
        return tuple(float(one) for one in text.split(","))
    except ValueError as error:
        help = "give numbers with commas between them, such as 0.7,0.3"
        raise UsageError.one("K002", f"--weights: `{text}` is not a list of numbers", help=help) from error


def _show(made: Combined) -> None:
    out.print(f"combined: {visible(str(made.folder))} (rank {made.rank})")
    for name, loss in made.losses.items():
        out.print(f"held-out loss of {visible(name)}: {loss:.4f} nats per token")
    if made.losses:
        out.print(f"measured on {visible(made.rows)}")
    else:
        out.print(f"note: {visible(made.rows)}; --rows FILE measures on others")
    found = made.proof
    out.print(f"proof: read back in a fresh process, {found.rows} rows differ by {found.max_difference:.3g} at most")
    out.print(f'next: qlmm ask {visible(str(made.folder))} --image picture.png "What is this?"')
