"""``qlmm pull``: an adapter from the Hub, verified before it is in its place."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qlmm.cli.arguments import AsJson
from qlmm.cli.output.console import out
from qlmm.core.command_line import ours

__all__ = ["pull"]

EXAMPLE = "Example: qlmm pull user/owl@3f2a9c1 owl"


def pull(
    name: Annotated[str, typer.Argument(metavar="USER/NAME[@REVISION]", help="An adapter of qlmm on the Hub.")],
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Folder to make; unset: ./NAME.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch an adapter from the Hub."""
    from qlmm.artifacts.hub.connection import checked_name

    checked_name(name.partition("@")[0])
    from qlmm.artifacts.hub.transfer import pull as fetch

    pulled = fetch(name, folder, tell=out.note)
    if not pulled.proven:
        out.warn("this adapter is not proven; its card has what is known")
    if as_json:
        out.json(asdict(pulled) | {"folder": str(pulled.folder)})
        return
    out.print(str(pulled.folder))
    out.note(f"{pulled.repo}@{pulled.commit}, verified: {pulled.files} files have the hashes that its qlmm.json names")
    out.note(f"ask it with: {ours('ask', pulled.folder, 'What is this?', image='picture.png')}")
