"""Commands that hand adapters on, to other programs and into other adapters: what each of them takes.

Usage: ``app.add_typer(commands)``
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["commands"]

commands = typer.Typer(rich_markup_mode=None)


@commands.command(epilog="Example: qlmm export runs/owl_lora --to vllm --out served")
def export(  # noqa: PLR0917  every parameter is an option of the command
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="An adapter folder, a run directory, or an adapter's Hub id.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="TARGET", help="hf, peft, vllm, gguf or ollama.")],
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to make.")],
    onto: Annotated[
        Literal["original", "trained"],
        typer.Option("--onto", help="Base to merge into: as published, or as the run held it."),
    ] = "trained",
    outtype: Annotated[
        str, typer.Option("--outtype", metavar="TYPE", help="How GGUF stores weights: f16, bf16, q8_0 or f32.")
    ] = "f16",
    converter: Annotated[
        Path | None,
        typer.Option("--converter", metavar="FILE", help="llama.cpp's convert_hf_to_gguf.py, for other models."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make an adapter ready for other programs."""
    from qlmm.cli.commands.export import export as run

    run(adapter, to, folder, onto=onto, outtype=outtype, converter=converter, as_json=as_json)


@commands.command(epilog="Example: qlmm combine runs/a runs/b --weights 0.5,0.5 --out both")
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Combine adapters of one base into one."""
    from qlmm.cli.commands.combine import Asked
    from qlmm.cli.commands.combine import combine as run

    run(adapters, folder, Asked(method, weights, density, rows, image_root), as_json=as_json)
