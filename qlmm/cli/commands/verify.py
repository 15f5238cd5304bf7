"""``qlmm verify``: every claim of an adapter is checked, and shown as a table or as JSON."""

from __future__ import annotations

from dataclasses import asdict

import typer

from qlmm.cli.arguments import Adapter, AsJson, adapter_folder
from qlmm.cli.output.console import out

__all__ = ["verify"]

EXAMPLE = "Example: qlmm verify runs/owl_lora"


def verify(adapter: Adapter, as_json: AsJson = False) -> None:
    """Check that an adapter is what it says."""
    from qlmm.artifacts.adapter.verify import verify as check
    from qlmm.cli.output.screens import checks_screen

    verdict = check(adapter_folder(adapter), tell=out.note)
    if as_json:
        checks = [asdict(one) for one in verdict.checks]
        facts = {"adapter": str(verdict.folder), "verified": verdict.holds, "checks": checks}
        out.json(facts, exit_code=int(not verdict.holds))
    else:
        out.screen(checks_screen(verdict.checks))
        failed = any(one.status == "failed" for one in verdict.checks)
        doubt = "is NOT what it says it is" if failed else "could not be checked in full: this is not a proof"
        out.print(f"{verdict.folder} {'is what it says it is' if verdict.holds else doubt}")
    if not verdict.holds:
        raise typer.Exit(1)
