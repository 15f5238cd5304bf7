"""The file name is the registry: a name in a recipe is a file in a folder.

A name only reaches a module of the one folder it belongs to, so a shared recipe cannot name an arbitrary import.

Usage: ``load("qlmm.model.connectors", "mlp", "CONNECTOR", Connector)``
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Iterable
from typing import TypeVar

from qlmm.core.errors import UsageError

__all__ = ["NAME_RULE", "close", "load", "names"]

KindT = TypeVar("KindT")

NAME_RULE = r"^[a-z][a-z0-9_]*$"


def names(package: str) -> list[str]:
    """The public names in a package's folder, sorted; none of its files is imported."""
    found = {module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__)}
    return sorted(name for name in found if re.fullmatch(NAME_RULE, name))


def load(package: str, name: str, attribute: str, kind: type[KindT]) -> KindT:
    """Import ``package.name`` and return its ``attribute``, an instance of ``kind``.

    Raises:
        UsageError: N001 when no file of that name exists, N002 when the file exposes nothing of that kind.
    """
    known = names(package)
    if name not in known:
        noun = package.rpartition(".")[2].removesuffix("s").replace("_", " ")
        raise UsageError.one("N001", f"no {noun} is called `{name}`", help=close(name, known))
    found = vars(importlib.import_module(f"{package}.{name}")).get(attribute)
    if not isinstance(found, kind):
        what = f"{attribute}, an instance of {kind.__name__}"
        raise UsageError.one("N002", f"{package}.{name} does not define {what}", help=f"every file of {package} does")
    return found


def close(name: str, known: Iterable[str]) -> str:
    """The help after an unknown name: the nearest known one, and all that are known."""
    choices = list(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    guess = f"did you mean `{near[0]}`?  " if near else ""
    return f"{guess}known: {', '.join(choices) or 'none'}"
