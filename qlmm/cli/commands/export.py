"""``qlmm export``: an adapter is made ready for another program, after a line about what gets lost."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qlmm.cli.arguments import Adapter, AsJson, Folder, Onto
from qlmm.cli.output.console import out

__all__ = ["export"]

EXAMPLE = "Example: qlmm export runs/owl_lora --to vllm --out served"


def export(  # noqa: PLR0917  every parameter is an option of the command
    adapter: Adapter,
    to: Annotated[str, typer.Option(metavar="TARGET", help="hf, peft, vllm, gguf or ollama.")],
    folder: Folder,
    onto: Onto = "trained",
    outtype: Annotated[
        str, typer.Option(metavar="TYPE", help="How GGUF stores weights: f16, bf16, q8_0 or f32.")
    ] = "f16",
    converter: Annotated[
        Path | None, typer.Option(metavar="FILE", help="llama.cpp's convert_hf_to_gguf.py, for other models.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an adapter ready for other programs."""
    from qlmm.artifacts.export.export import Wishes
    from qlmm.artifacts.export.export import export as run

    made = run(adapter, to, folder, Wishes(onto, outtype, converter), out.note)
    if as_json:
        out.json(asdict(made) | {"folder": str(made.folder), "to": to})
        return
    out.print(f"exported for {to}: {made.folder}")
    out.print(*(f"proof: {line}" for line in made.proof), *(f"use: {line}" for line in made.commands))
