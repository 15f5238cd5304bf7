"""``qlmm combine``: several adapters of one base become one; what each of them loses is measured on the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qlmm.cli.arguments import AsJson, Folder, ImageRoot
from qlmm.cli.output.console import out
from qlmm.core.command_line import ours
from qlmm.core.errors import UsageError

if TYPE_CHECKING:
    from qlmm.artifacts.combine.combine import Combined

__all__ = ["combine"]

EXAMPLE = "Example: qlmm combine runs/a runs/b --weights 0.5,0.5 --out both"


def combine(  # noqa: PLR0917  every parameter is an option of the command
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER ADAPTER...", help="Folders, runs, Hub ids or zoo:NAMEs, of one base."),
    ],
    weights: Annotated[str, typer.Option(metavar="W,W...", help="One number per adapter, in their order.")],
    folder: Folder,
    method: Annotated[
        Literal["cat", "linear", "ties"], typer.Option(help="How LoRA is combined; cat is the exact sum.")
    ] = "cat",
    density: Annotated[float, typer.Option(help="Share of values that ties keeps.")] = 0.5,
    rows: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows to measure on; unset: those the runs held out.")
    ] = None,
    image_root: ImageRoot = None,
    as_json: AsJson = False,
) -> None:
    """Combine adapters of one base into one."""
    numbers = _numbers(weights)
    from qlmm.artifacts.combine.combine import Settings
    from qlmm.artifacts.combine.combine import combine as run

    root = Path(image_root) if image_root is not None else None
    made = run(adapters, folder, Settings(method, numbers, density, rows, root), out.note)
    if as_json:
        measured = {"losses": made.facts.losses, "rows": made.facts.measured_on, "max_difference": made.facts.reload}
        out.json({"folder": str(made.folder), "rank": made.rank} | measured)
    else:
        _show(made)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in text.split(","))
    except ValueError as error:
        help = "give numbers with commas between them, such as 0.7,0.3"
        raise UsageError.one("K002", f"--weights: `{text}` is not a list of numbers", help=help) from error


def _show(made: Combined) -> None:
    out.print(f"combined: {made.folder!s} (rank {made.rank})")
    for name, loss in made.facts.losses.items():
        out.print(f"held-out loss of {name}: {loss:.4f} nats per token")
    rows = made.facts.measured_on
    out.print(f"measured on {rows}" if made.facts.losses else f"note: {rows}; --rows FILE measures on others")
    out.print(f"proof: read back in a fresh process, logits differ by {made.facts.reload:.3g} at most")
    out.print(f"next: {ours('ask', made.folder, 'What is this?', image='picture.png')}")
