"""``qlmm fit``: the memory of a run before it starts, and the settings that make it fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from qlmm.cli.arguments import AsJson, Overrides, Recipe, loaded_recipe, prepare_packaged
from qlmm.cli.output.console import out
from qlmm.core.command_line import ours
from qlmm.core.errors import UsageError
from qlmm.core.units import memory

if TYPE_CHECKING:
    from qlmm.training.fit import FitFacts, Wish

__all__ = ["fit"]

EXAMPLE = "Examples: qlmm fit quickstart; qlmm fit owl_lora --memory 12GB; qlmm fit owl_lora --gpu 4090"


def fit(
    recipe: Recipe,
    overrides: Overrides = None,
    size: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="What the run may take of this machine's device, such as 12GB."),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="A card that it should fit, here or not, such as 4090.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Forecast a run's memory; make it fit."""
    from qlmm.cli.output.screens import fit_screen
    from qlmm.proof.records import to_json

    wish = _wish(size, gpu)
    loaded = loaded_recipe(recipe, overrides)
    with loaded.placing():
        prepare_packaged(loaded.recipe)
        from qlmm.training.fit import fit as run

        facts = run(loaded.recipe, wish)
    command = ours("finetune", recipe, *(overrides or []), *facts.chosen) if facts.fits else None
    code = 1 if facts.fits is False else 0
    if as_json:
        out.json({**to_json(facts), "command": command}, exit_code=code)
    else:
        out.screen(fit_screen(facts))
        _conclude(facts, command, recipe, overrides or [])
    if code:
        raise typer.Exit(code)


def _wish(size: str | None, gpu: str | None) -> Wish | None:
    """What was asked for; U042 for a size that is none, U043 for both at once."""
    if size is None and gpu is None:
        return None
    if size is not None and gpu is not None:
        raise UsageError.one("U043", "--memory and --gpu exclude each other", help="leave one of them out")
    from qlmm.training.fit import Wish

    if gpu is not None:
        return Wish.of_card(gpu)
    try:
        return Wish.of_size(size or "")
    except ValueError as error:
        raise UsageError.one("U042", f"--memory: {error}", help="a number with a unit: 12GB") from error


def _conclude(facts: FitFacts, command: str | None, recipe: str, overrides: Sequence[str]) -> None:
    """Say what to run, or what is missing; commands are pasted, so they must not be wrapped."""
    if command is not None:
        out.print(command)
    elif facts.fits is False:
        out.print(f"nothing fits {facts.budget}: the smallest settings take {memory(facts.missing_bytes)} more")
        for one in facts.proposals:
            out.print(f"it would fit with {one}, which changes what is learned:")
            out.print(ours("fit", recipe, *overrides, one))
