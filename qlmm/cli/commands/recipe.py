"""``qlmm recipe list | show | check | explain | new``: recipes without a run, and without torch.

Usage: ``check("owl_lora", ["training.steps=20"])``
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from qlmm.cli.output.console import out
from qlmm.core import naming
from qlmm.core.errors import Problem, RecipeError
from qlmm.core.secrets import redact
from qlmm.recipe import library
from qlmm.recipe.explain import describe, explain, explained, reference
from qlmm.recipe.load import LoadedRecipe, load_recipe
from qlmm.recipe.schema_keys import keys

__all__ = ["check", "list_recipes", "new", "show", "tell"]


def list_recipes(*, markdown: bool = False) -> None:
    """Print the shipped recipes, one line each, or the page recipes/README.md."""
    if markdown:
        out.stream(library.readme())
        return
    abouts = [library.header(path) for path in library.shipped().values()]
    width = max((len(about.name) for about in abouts), default=0)
    for about in abouts:
        out.print(f"{about.name:<{width}}  {about.summary}")


def show(recipe: str) -> None:
    """Print a recipe's text as it stands in its file."""
    path = library.resolve(recipe)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError.one("R001", f"cannot read {path} as text") from error
    out.stream(redact(text))


def check(recipe: str, overrides: Sequence[str] = ()) -> None:
    """Say that a recipe can be read, and what it holds.

    Raises:
        RecipeError: with every problem. Whether models and data exist is for `qlmm finetune --dry-run` to say.
    """
    loaded = load_recipe(library.resolve(recipe), overrides)
    problems = list(_unknown_names(loaded))
    if problems:
        raise RecipeError(problems)
    origins = [item.origin for item in explained(loaded)]
    overridden, default = origins.count("override"), origins.count("default")
    given = len(origins) - overridden - default
    out.print(f"{loaded.file}: ok, {given} keys given, {overridden} overridden, {default} at their default")


def _unknown_names(loaded: LoadedRecipe) -> Iterator[Problem]:
    """Names of connectors and formats that no file has; listing the files imports none of them."""
    recipe = loaded.recipe
    asked = [("base.connector.kind", recipe.base.connector.kind)] if recipe.base.connector is not None else []
    known = naming.names("qlmm.model.connectors")
    formats = naming.names("qlmm.data.formats")
    sources = {"data": recipe.data.sources, "evaluation": recipe.evaluation.sources}
    for section, listed in sources.items():
        for index, source in enumerate(listed):
            if source.format is not None and source.format not in formats:
                yield _unknown(loaded, f"{section}.sources.{index}.format", source.format, formats)
    for key, name in asked:
        if name not in known:
            yield _unknown(loaded, key, name, known)


def _unknown(loaded: LoadedRecipe, key: str, name: str, known: Sequence[str]) -> Problem:
    noun = "connector" if key.startswith("base") else "format"
    return Problem("N001", f"no {noun} is called `{name}`", loaded.where(key), naming.close(name, known))


def tell(subject: str | None, overrides: Sequence[str] = (), *, markdown: bool = False) -> None:
    """Explain all keys, one key or section, or every value of a recipe.

    Args:
        subject: nothing for all keys; a key or section such as ``training.steps``; else a recipe.
        overrides: changes of that recipe.
        markdown: print the page docs/recipe.md instead.
    """
    if markdown:
        out.stream(reference())
    elif subject is None:
        for section in dict.fromkeys(key.section for key in keys()):
            out.print(describe(section))
    elif _is_key(subject) and not Path(subject).is_file():
        out.print(describe(subject))
    else:
        out.print(explain(load_recipe(library.resolve(subject), overrides)))


def _is_key(subject: str) -> bool:
    """Whether the words are about keys: they start with a section and are no file name."""
    return subject.partition(".")[0] in {key.section for key in keys()} and not subject.endswith((".yaml", ".yml"))


def new(name: str, source: str) -> None:
    """Copy a shipped recipe into the current directory and say what to do with it."""
    path = library.copy(name, source, Path())
    out.print(str(path))
    out.talk(f"edit it, then: qlmm recipe check {path} && qlmm finetune {path} --dry-run")
