"""``qlmm export``: an adapter is made ready for another program, after a line about what gets lost.

Usage: ``qlmm export runs/owl_lora --to vllm --out served``
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from qlmm.cli.arguments import AsJson, zoo_folder
from qlmm.cli.output.console import out, visible

__all__ = ["export"]

EXAMPLE = "Example: qlmm export runs/owl_lora --to vllm --out served"


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
    as_json: AsJson = False,
) -> None:
    """Make an adapter ready for other programs."""
    from qlmm.artifacts.export.export import Wishes
    from qlmm.artifacts.export.export import export as run

    # A name of the Hub must stay a string: as a path it would lose what tells it from a folder.
    made = run(zoo_folder(adapter), to, folder, Wishes(onto, outtype, converter), out.talk)
    if as_json:
        out.json(asdict(made) | {"folder": str(made.folder), "to": to})
        return
    out.print(f"exported for {to}: {visible(str(made.folder))}")
    for line in made.proof:
        out.print(f"proof: {visible(line)}")
    for line in made.commands:
        out.print(f"use: {visible(line)}")
