"""``qlmm zoo``: what its commands take, and how any command takes ``zoo:NAME`` for an adapter.

Usage: ``app.add_typer(zoo_app, name="zoo"); typer.Argument(callback=from_zoo)``
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["from_zoo", "zoo_app"]

ZOO = "zoo:"

zoo_app = typer.Typer(help="Small adapters that come with qlmm.", no_args_is_help=True, rich_markup_mode=None)


def from_zoo(adapter: Path) -> Path:
    """The folder that an adapter argument means; an entry of the zoo is completed when it is named."""
    if not str(adapter).startswith(ZOO):
        return adapter
    from qlmm.cli.output.library_noise import quiet

    quiet()
    from qlmm.artifacts.zoo.catalogue import located

    return located(str(adapter))


def _names(incomplete: str) -> list[str]:
    """Entries that complete a word on the command line."""
    from qlmm.recipe.zoo import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


Name = Annotated[str, typer.Argument(metavar="NAME", help="An adapter of the zoo.", autocompletion=_names)]


@zoo_app.command("list")
def zoo_list() -> None:
    """List the adapters and what they reached."""
    from qlmm.cli.commands.zoo import list_entries as run

    run()


@zoo_app.command("show", epilog="Example: qlmm zoo show owl_kinds")
def zoo_show(name: Name) -> None:
    """Show an adapter's results and card."""
    from qlmm.cli.commands.zoo import show as run

    run(name)


@zoo_app.command("verify", epilog="Example: qlmm zoo verify owl_kinds")
def zoo_verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Adapters of the zoo; unset: all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check that adapters are what they say."""
    from qlmm.cli.commands.zoo import verify as run

    run(names or [], as_json=as_json)


@zoo_app.command("run", epilog="Example: qlmm zoo run owl_kinds --image cat.png")
def zoo_run(
    name: Name,
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="What to ask; unset: what it was trained on.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="A picture; unset: those it was tested with.")
    ] = None,
) -> None:
    """Ask an adapter about a picture."""
    from qlmm.cli.commands.zoo import run

    run(name, question, image)
