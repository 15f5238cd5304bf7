"""Arguments and options that several commands take, each declared once.

Usage: ``def verify(adapter: Adapter, as_json: AsJson = False) -> None: ...``
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Adapter",
    "AsJson",
    "Images",
    "MaxNewTokens",
    "Overrides",
    "Recipe",
    "Sample",
    "Seed",
    "complete_recipe",
    "zoo_folder",
]

ZOO = "zoo:"


def zoo_folder(adapter: str) -> str:
    """The folder of ``zoo:NAME``, completed first; any other name of an adapter comes back as it is."""
    if not adapter.startswith(ZOO):
        return adapter
    from qlmm.artifacts.zoo.catalogue import located

    return str(located(adapter))


def _adapter_folder(adapter: Path) -> Path:
    return Path(zoo_folder(str(adapter)))


def complete_recipe(incomplete: str) -> list[str]:
    """Shipped recipes that complete a word on the command line."""
    from qlmm.recipe.library import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A recipe file, a shipped name, or zoo:NAME.", autocompletion=complete_recipe
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="section.key=value", help="Changes of the recipe, such as training.steps=20."),
]
Adapter = Annotated[
    Path,
    typer.Argument(
        metavar="ADAPTER", help="Adapter folder of a run (runs/x/adapter), or zoo:NAME.", callback=_adapter_folder
    ),
]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", metavar="FILE", help="A picture; give the option again for more."),
]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")]
Sample = Annotated[bool, typer.Option("--sample", help="Draw tokens at random instead of taking the likeliest.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the draws of --sample.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
