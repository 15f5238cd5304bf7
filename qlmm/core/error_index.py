"""What every code of an error means, read from one file.

Usage: ``meaning("D005").do``; ``page()`` is docs/errors.md
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

from qlmm.core.errors import EXIT_CODES, UsageError
from qlmm.core.naming import close

__all__ = ["Meaning", "index", "meaning", "page"]

INDEX = Path(__file__).with_name("error_codes.toml")
_INTRODUCTION = """\
# Errors

Every refusal of qlmm has a code: `error[D005]: …`. The message is what is wrong and where, its help what to do.
`qlmm explain D005` explains a code, `qlmm explain` lists all of them.

This page is made from `qlmm/core/error_codes.toml` by `qlmm explain --markdown`.

## Exit codes

{exit_codes}

With `--json` a command prints one object: `qlmm` (the version), `command`, `exit_code`, `problems` (code, message,
place, help) and `result`, which is null where there is none. Notes go to stderr. After an unknown option there is none.
"""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one code means: what happened and why it is refused, and what to do. The code's letter is its area."""

    code: str
    title: str
    why: str
    do: str
    area: str


@cache
def index() -> dict[str, Meaning]:
    """Every code with its meaning, in order."""
    found = tomllib.loads(INDEX.read_text("utf-8"))
    areas = found.pop("areas")
    return {code: Meaning(code, **found[code], area=areas[code[0]]) for code in sorted(found)}


def meaning(code: str) -> Meaning:
    """What a code means, in upper or lower case; N001 with the nearest code for one that does not exist."""
    known = index()
    if code.upper() not in known:
        nearest = close(code.upper(), known).partition("known:")[0].strip()
        help = f"{nearest} `qlmm explain` lists all codes".strip()
        raise UsageError.one("N001", f"no error has the code `{code}`", help=help)
    return known[code.upper()]


def page() -> str:
    """The page docs/errors.md."""
    codes = "\n".join(f"* `{code}`: {words}" for code, words in EXIT_CODES.items())
    lines = [_INTRODUCTION.format(exit_codes=codes)]
    for area, meanings in groupby(index().values(), key=lambda one: one.area):
        lines.append(f"## {area}\n")
        lines += [f"### {one.code}: {one.title}\n\n{one.why}\n\n*What to do:* {one.do}\n" for one in meanings]
    return "\n".join(lines).rstrip() + "\n"
