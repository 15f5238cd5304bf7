"""``qlmm recipe list | show | check | explain | new``: recipes without a run, and without torch.

Usage: ``qlmm recipe check owl_lora training.steps=20``
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qlmm.cli.arguments import Overrides, Recipe, complete_recipe
from qlmm.cli.output.console import out
from qlmm.core import naming
from qlmm.core.errors import Problem, RecipeError
from qlmm.core.secrets import redact

if TYPE_CHECKING:
    from qlmm.recipe.load import LoadedRecipe

__all__ = ["check", "explain", "group", "list_recipes", "new", "show"]

group = typer.Typer(help="Find, check, understand and copy recipes.", no_args_is_help=True, rich_markup_mode=None)


@group.command("list")
def list_recipes(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page recipes/README.md.")] = False,
) -> None:
    """List the shipped recipes."""
    from qlmm.recipe import library

    if markdown:
        out.stream(library.readme())
        return
    abouts = [library.header(path) for path in library.shipped().values()]
    width = max((len(about.name) for about in abouts), default=0)
    for about in abouts:
        out.print(f"{about.name:<{width}}  {about.summary}")


@group.command("show")
def show(recipe: Recipe) -> None:
    """Print a recipe as it stands."""
    from qlmm.recipe.library import resolve

    path = resolve(recipe)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError.one("R001", f"cannot read {path} as text") from error
    out.stream(redact(text))


@group.command("check", epilog="Example: qlmm recipe check owl_lora training.steps=20")
def check(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check a recipe, listing every problem."""
    from qlmm.recipe.explain import explained
    from qlmm.recipe.library import resolve
    from qlmm.recipe.load import load_recipe

    # Whether models and data exist is for `qlmm finetune --dry-run` to say.
    loaded = load_recipe(resolve(recipe), overrides or [])
    problems = list(_unknown_names(loaded))
    if problems:
        raise RecipeError(problems)
    origins = [item.origin for item in explained(loaded)]
    overridden, default = origins.count("override"), origins.count("default")
    given = len(origins) - overridden - default
    out.print(f"{loaded.file}: ok, {given} keys given, {overridden} overridden, {default} at their default")


@group.command("explain", epilog="Examples: qlmm recipe explain training.steps; qlmm recipe explain owl_lora")
def explain(
    subject: Annotated[
        str | None,
        typer.Argument(metavar="[KEY|RECIPE]", help="A key, a section, or a recipe; unset: all keys."),
    ] = None,
    overrides: Overrides = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/recipe.md.")] = False,
) -> None:
    """Explain keys, or the values of a recipe."""
    from qlmm.recipe import explain as pages
    from qlmm.recipe.library import resolve
    from qlmm.recipe.load import load_recipe
    from qlmm.recipe.schema_keys import keys

    sections = dict.fromkeys(key.section for key in keys())
    if markdown:
        out.stream(pages.reference())
    elif subject is None:
        out.print(*(pages.describe(section) for section in sections))
    elif _is_key(subject, sections) and not Path(subject).is_file():
        out.print(pages.describe(subject))
    else:
        out.print(pages.explain(load_recipe(resolve(subject), overrides or [])))


@group.command("new", epilog="Example: qlmm recipe new mine --from owl_lora")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new recipe; NAME.yaml is written here.")],
    source: Annotated[
        str, typer.Option("--from", metavar="RECIPE", help="What to copy.", autocompletion=complete_recipe)
    ] = "owl_lora",
) -> None:
    """Copy a shipped recipe to start from."""
    from qlmm.recipe import library

    path = library.copy(name, source, Path())
    out.print(str(path))
    out.talk(f"edit it, then: qlmm recipe check {path} && qlmm finetune {path} --dry-run")


def _is_key(subject: str, sections: Iterable[str]) -> bool:
    """Whether the words are about keys: they start with a section, and do not name a file."""
    return subject.partition(".")[0] in sections and not subject.endswith((".yaml", ".yml"))


def _unknown_names(loaded: LoadedRecipe) -> Iterator[Problem]:
    """Names of connectors and formats that no file has; listing the files imports none of them."""
    recipe = loaded.recipe
    formats = naming.names("qlmm.data.formats")
    for section, sources in (("data", recipe.data.sources), ("evaluation", recipe.evaluation.sources)):
        for index, source in enumerate(sources):
            if source.format is not None and source.format not in formats:
                yield _unknown(loaded, "format", f"{section}.sources.{index}.format", source.format, formats)
    connector = recipe.base.connector
    connectors = naming.names("qlmm.model.connectors")
    if connector is not None and connector.kind not in connectors:
        yield _unknown(loaded, "connector", "base.connector.kind", connector.kind, connectors)


def _unknown(loaded: LoadedRecipe, noun: str, key: str, name: str, known: Sequence[str]) -> Problem:
    return Problem("N001", f"no {noun} is called `{name}`", loaded.where(key), naming.close(name, known))
