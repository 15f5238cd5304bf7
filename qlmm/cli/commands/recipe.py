"""``qlmm recipe list | show | check | explain | new``: recipes without a run, and without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qlmm.cli.arguments import AsJson, Markdown, Overrides, Recipe, complete_recipe, loaded_recipe
from qlmm.cli.output.console import out
from qlmm.core import naming
from qlmm.core.command_line import ours
from qlmm.core.errors import Problem, RecipeError
from qlmm.core.secrets import redact

if TYPE_CHECKING:
    from qlmm.recipe.load import LoadedRecipe

__all__ = ["check", "explain", "group", "list_recipes", "new", "show"]

group = typer.Typer(help="Find, check, understand and copy recipes.", no_args_is_help=True, rich_markup_mode=None)


@group.command("list")
def list_recipes(markdown: Markdown = False, as_json: AsJson = False) -> None:
    """List the shipped recipes."""
    from qlmm.recipe import library

    if markdown:
        out.stream(library.readme())
        return
    abouts = [library.header(path) for path in library.shipped().values()]
    if as_json:
        out.json([asdict(about) for about in abouts])
        return
    width = max((len(about.name) for about in abouts), default=0)
    out.print(*(f"{about.name:<{width}}  {about.summary}" for about in abouts))


@group.command()
def show(recipe: Recipe, as_json: AsJson = False) -> None:
    """Print a recipe as it stands."""
    from qlmm.recipe.library import resolve
    from qlmm.recipe.load import read_text

    path = resolve(recipe)
    text = redact(read_text(path))
    if as_json:
        out.json({"recipe": str(path), "text": text})
    else:
        out.stream(text)


@group.command(epilog="Example: qlmm recipe check owl_lora training.steps=20")
def check(recipe: Recipe, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a recipe, listing every problem."""
    from qlmm.recipe.explain import explained

    # Whether models and data exist is for `qlmm finetune --dry-run` to find out.
    loaded = loaded_recipe(recipe, overrides)
    if problems := list(_unknown_names(loaded)):
        raise RecipeError(problems)
    origins = [item.origin for item in explained(loaded)]
    overridden, default = origins.count("override"), origins.count("default")
    given = len(origins) - overridden - default
    if as_json:
        out.json({"recipe": loaded.file, "given": given, "overridden": overridden, "default": default})
        return
    out.print(f"{loaded.file}: ok, {given} keys given, {overridden} overridden, {default} at their default")


@group.command(epilog="Examples: qlmm recipe explain training.steps; qlmm recipe explain owl_lora")
def explain(
    subject: Annotated[
        str | None, typer.Argument(metavar="[KEY|RECIPE]", help="A key, a section, or a recipe; unset: all keys.")
    ] = None,
    overrides: Overrides = None,
    markdown: Markdown = False,
    as_json: AsJson = False,
) -> None:
    """Explain keys, or the values of a recipe."""
    from qlmm.recipe import explain as pages
    from qlmm.recipe.library import is_recipe
    from qlmm.recipe.schema import Recipe as Schema

    if markdown:
        out.stream(pages.reference())
        return
    section = (subject or "").partition(".")[0]
    if subject is None or (section in Schema.model_fields and not is_recipe(subject) and not Path(subject).is_file()):
        names = [subject] if subject is not None else list(Schema.model_fields)
        if as_json:
            out.json([pages.facts_of(key) for name in names for key in pages.described(name)])
        else:
            out.print(*map(pages.describe, names))
        return
    loaded = loaded_recipe(subject, overrides)
    if as_json:
        out.json(pages.facts_in(loaded))
    else:
        out.print(pages.explain(loaded))


@group.command(epilog="Example: qlmm recipe new mine --from owl_lora")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new recipe; NAME.yaml is written here.")],
    source: Annotated[
        str, typer.Option("--from", metavar="RECIPE", help="What to copy.", autocompletion=complete_recipe)
    ] = "owl_lora",
    as_json: AsJson = False,
) -> None:
    """Copy a shipped recipe to start from."""
    from qlmm.recipe import library

    path = library.copy(name, source, Path())
    if as_json:
        out.json({"recipe": str(path)})
    else:
        out.print(str(path))
    out.note(f"edit it, then: {ours('recipe check', path)} && {ours('finetune', path, dry_run=True)}")


def _unknown_names(loaded: LoadedRecipe) -> Iterator[Problem]:
    """Names of connectors and formats that no file has; listing the files imports none of them."""
    recipe, connector = loaded.recipe, loaded.recipe.base.connector
    named = [("connector", "base.connector.kind", connector.kind if connector is not None else None)]
    for section, sources in (("data", recipe.data.sources), ("evaluation", recipe.evaluation.sources)):
        named += [("format", f"{section}.sources.{index}.format", one.format) for index, one in enumerate(sources)]
    for noun, key, name in named:
        known = naming.names({"format": "qlmm.data.formats", "connector": "qlmm.model.connectors"}[noun])
        if name is not None and name not in known:
            yield Problem("N001", f"no {noun} is called `{name}`", loaded.where(key), naming.close(name, known))
