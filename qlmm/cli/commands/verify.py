"""``qlmm verify``: every claim of an adapter, checked, as a table or as JSON.

Usage: ``verify("runs/owl_lora", as_json=False)``
"""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.table import Table
from rich.text import Text

from qlmm.artifacts.adapter.verify import Verdict
from qlmm.artifacts.adapter.verify import verify as check
from qlmm.artifacts.zoo.find import find_adapter
from qlmm.cli.output.console import out, visible
from qlmm.cli.output.library_noise import quiet

__all__ = ["verify"]

STYLES = {"ok": "green", "failed": "bold red", "not checked": "yellow"}
WORDS = {"ok": "ok", "failed": "FAILED", "not checked": "not checked"}


def verify(target: str, *, as_json: bool = False) -> None:
    """Print what was checked and how it went; leave with 1 unless every check passed.

    Args:
        target: an adapter folder, a run directory, or a Hub id.
        as_json: print one JSON object instead of a table.

    Raises:
        UsageError: when there is no adapter to check.
    """
    quiet()
    verdict = check(find_adapter(target), tell=out.talk)
    if as_json:
        checks = [asdict(one) for one in verdict.checks]
        out.json({"adapter": str(verdict.folder), "verified": verdict.holds, "checks": checks})
    else:
        _show(verdict)
    if not verdict.holds:
        raise typer.Exit(1)


def _show(verdict: Verdict) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for one in verdict.checks:
        found = Text(visible(one.found) + (f"\nwhat to do: {visible(one.help)}" if one.help else ""))
        table.add_row(one.name, Text(WORDS[one.status], STYLES[one.status]), found)
    out.screen(table)
    statuses = {one.status for one in verdict.checks}
    if verdict.holds:
        out.print(f"{verdict.folder} is what it says it is")
    elif "failed" in statuses:
        out.print(f"{verdict.folder} is NOT what it says it is")
    else:
        out.print(f"{verdict.folder} could not be checked in full: this is no proof")
