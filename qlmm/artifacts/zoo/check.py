"""Is an entry of the zoo whole, and does it hold what ``qlmm verify`` checks?

Usage: ``verdict = check_entry("owl_kinds"); verdict.holds``
"""

from __future__ import annotations

from qlmm.artifacts.adapter.manifest import read_manifest
from qlmm.artifacts.adapter.verify import Verdict, run_check, verify
from qlmm.artifacts.zoo.catalogue import Tell, complete
from qlmm.recipe.zoo import entry_folder

__all__ = ["check_entry"]


def check_entry(name: str, tell: Tell = lambda line: None) -> Verdict:
    """Check an entry: whether it can be completed, then everything that ``qlmm verify`` checks.

    Raises:
        UsageError: Z001 for an unknown name.
    """
    source = entry_folder(name)

    def completed() -> str:
        place, names = complete(name, tell), read_manifest(source).files
        written = sum(not (source / file).is_file() for file in names)
        return f"{written} of {len(names)} files of {place.name} were left out and written again"

    check = run_check("completed", completed)
    rest = verify(complete(name, tell), tell=tell).checks if check.status == "ok" else ()
    return Verdict(source, (check, *rest))
