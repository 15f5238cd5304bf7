"""Is an entry of the zoo what it says? Its papers against each other, then the checks of ``qlmm verify``.

Usage: ``verdict = check_entry("owl_kinds"); verdict.holds``
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from qlmm.artifacts.adapter.manifest import Manifest, read_manifest
from qlmm.artifacts.adapter.verify import Check, Verdict, verify
from qlmm.artifacts.hub.package import proof_of
from qlmm.artifacts.zoo.catalogue import WEIGHTS, complete
from qlmm.artifacts.zoo.entry import Entry, Results, read_entry
from qlmm.core.errors import ModelError, QlmmError, Unavailable
from qlmm.recipe.library import ZOO_RECIPE
from qlmm.recipe.load import load_recipe
from qlmm.recipe.zoo import entry_folder

__all__ = ["check_entry"]


def check_entry(name: str, tell: Callable[[str], None] = lambda line: None) -> Verdict:
    """Check an entry: its facts, its recipe, its completion, and everything that ``qlmm verify`` checks.

    Raises:
        UsageError: Z001 for an unknown name.
    """
    source = entry_folder(name)
    try:
        entry, manifest = read_entry(source), read_manifest(source)
        _compare_facts(entry, manifest)
        _compare_files(source, entry, manifest)
        facts = Check("entry", "ok", "facts and recipe are those of the run")
        place = complete(name, tell)
    except QlmmError as error:
        status: Literal["failed", "not checked"] = "not checked" if isinstance(error, Unavailable) else "failed"
        return Verdict(source, (Check("entry", status, error.text, error.problems[0].help or ""),))
    left_out = len(manifest.files) - sum((source / file).is_file() for file in manifest.files)
    completed = Check("completed", "ok", f"{left_out} of {len(manifest.files)} files were left out and written again")
    return Verdict(source, (facts, completed, *verify(str(place), tell=tell).checks))


def _compare_facts(entry: Entry, manifest: Manifest) -> None:
    proof = proof_of(manifest)
    if not proof.holds:
        raise ModelError.one("Z020", "the run's proof does not hold", help="make the entry again from a proven run")
    measured = Results(
        before=proof.before, after=proof.after, pairs_before=proof.pairs_before, pairs_after=proof.pairs_after
    )
    if measured != entry.results:
        help = "make the entry again with qlmm zoo add; its facts are not written by hand"
        raise ModelError.one("Z020", "entry.json tells other results than qlmm.json", help=help)
    again = entry.rebuilt
    if again is not None and again.equal is not (again.sha256 == manifest.files[WEIGHTS]):
        help = "compare again: qlmm zoo add with --again"
        raise ModelError.one("Z020", "entry.json and the hash of the weights made again disagree", help=help)


def _compare_files(source: Path, entry: Entry, manifest: Manifest) -> None:
    recipe, weights = source / ZOO_RECIPE, source / WEIGHTS
    if load_recipe(recipe).recipe != manifest.recipe:
        help = "make the entry again with qlmm zoo add, or take recipe.yaml from the repository"
        raise ModelError.one("Z020", f"{recipe} is not the recipe of the run", help=help)
    if entry.weights == "here" and weights.is_file() and weights.stat().st_size != entry.size_bytes:
        help = "take the folder from the repository again"
        raise ModelError.one("Z020", f"{weights} has another size than entry.json says", help=help)
