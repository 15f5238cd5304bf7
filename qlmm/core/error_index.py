"""What every code of an error means: a title, what happened and why, what to do. Read from one file, without torch.

Usage: ``meaning("D005").do``; ``page()`` is docs/errors.md
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

from qlmm.core.errors import UsageError
from qlmm.core.naming import close

__all__ = ["Meaning", "index", "meaning", "page"]

INDEX = Path(__file__).with_name("error_codes.toml")
_AREAS = {
    "A": "Adapters and merging",
    "B": "Packaged weights and data",
    "C": "Going on with a run",
    "D": "Rows, pictures and processors",
    "E": "Export",
    "G": "Numbers and memory while training",
    "H": "The Hub",
    "J": "Preference data",
    "K": "Combining adapters",
    "L": "The log of a run",
    "M": "Models",
    "N": "Names of extensions",
    "O": "The output folder",
    "P": "Promises",
    "R": "Recipes",
    "S": "Seals",
    "T": "Training settings",
    "U": "Options of commands",
    "X": "Bugs",
    "Z": "The zoo",
}
_INTRODUCTION = """\
# Errors

Every refusal of qlmm has a code: `error[D005]: …`. The message says what is wrong and where, its help what to do.
`qlmm explain D005` says more about a code, `qlmm explain` lists all of them.

A command leaves with 2 when nothing was started and nothing was written, and with 1 when a run that had started could
not go on or could not prove what it promised. 101 is a bug in qlmm.

This page is made from `qlmm/core/error_codes.toml` by `qlmm explain --markdown`.
"""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one code means.

    Attributes:
        code: a letter for the area and three digits; it stays the same while the meaning does.
        title: one line.
        why: what happened, and why it is refused.
        do: what to do.
    """

    code: str
    title: str
    why: str
    do: str

    @property
    def area(self) -> str:
        """What the code's letter stands for."""
        return _AREAS[self.code[0]]


@cache
def index() -> dict[str, Meaning]:
    """Every code with its meaning, in order."""
    found = tomllib.loads(INDEX.read_text("utf-8"))
    return {code: Meaning(code, **found[code]) for code in sorted(found)}


def meaning(code: str) -> Meaning:
    """What a code means; upper and lower case are the same.

    Raises:
        UsageError: N001 with the nearest code for one that does not exist.
    """
    known = index()
    if code.upper() not in known:
        nearest = close(code.upper(), known).partition("known:")[0].strip()
        help = f"{nearest} `qlmm explain` lists all codes".strip()
        raise UsageError.one("N001", f"no error has the code `{code}`", help=help)
    return known[code.upper()]


def page() -> str:
    """The page docs/errors.md."""
    lines = [_INTRODUCTION]
    for area, meanings in groupby(index().values(), key=lambda one: one.area):
        lines.append(f"## {area}\n")
        lines += [f"### {one.code}: {one.title}\n\n{one.why}\n\n*What to do:* {one.do}\n" for one in meanings]
    return "\n".join(lines).rstrip() + "\n"
