"""``qlmm push``: an adapter to the Hub; ``--dry-run`` shows what would leave this machine and asks nobody."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from qlmm.cli.arguments import Adapter, AsJson, adapter_folder
from qlmm.cli.output.console import out
from qlmm.core.command_line import ours
from qlmm.core.units import memory

if TYPE_CHECKING:
    from qlmm.artifacts.hub.package import Package

__all__ = ["push"]

EXAMPLE = "Example: qlmm push runs/owl_lora/adapter user/owl --dry-run"
SMALL_BYTES = 1024


def push(  # noqa: PLR0917  every parameter is an option of the command
    adapter: Adapter,
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository on the Hub; made if need be.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody read it; otherwise it is private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; ask and send nothing.")] = False,
    revision: Annotated[str, typer.Option(metavar="BRANCH", help="Branch to commit to.")] = "main",
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Message of the commit.")] = None,
    unproven: Annotated[bool, typer.Option("--unproven", help="Share an adapter that proves nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Share an adapter on the Hub."""
    from qlmm.artifacts.adapter.manifest import read_manifest
    from qlmm.artifacts.hub.connection import checked_name

    checked_name(repo)
    folder = adapter_folder(adapter)
    read_manifest(folder)
    from qlmm.artifacts.hub.package import pack
    from qlmm.artifacts.hub.transfer import push as send

    package = pack(folder, repo, unproven=unproven)
    _warn(package)
    if dry_run:
        _show(package, "public" if public else "private", revision, as_json=as_json)
        return
    out.note(f"pushing {len(package.sizes)} files, {_size(sum(package.sizes.values()))}, to {repo}")
    pushed = send(package, public=public, branch=revision, message=message, tell=out.note)
    if not pushed.changed:
        out.note("the same files were there already; nothing was changed")
    if as_json:
        out.json(asdict(pushed))
        return
    out.print(pushed.address, f"commit {pushed.commit}, {'private' if pushed.private else 'public'}")
    out.note(f"fetch it with: {ours('pull', f'{repo}@{pushed.commit}')}")


def _warn(package: Package) -> None:
    for name in package.left:
        out.warn(f"{name} is not part of an adapter and stays here")
    if package.local_base:
        out.warn("the base is a folder of this machine: nobody else can load this adapter until the base is shared too")
    if not package.proven:
        out.warn("this adapter is not proven; its card starts with that")


def _show(package: Package, seen: str, branch: str, *, as_json: bool) -> None:
    """Everything that would be sent, and the card word for word."""
    if as_json:
        facts = {"repo": package.repo, "branch": branch, "visibility": seen}
        out.json(facts | {"bytes": package.sizes, "card": package.card})
        return
    out.print(f"would push to {package.repo} ({seen}), branch {branch}; nothing is sent", "")
    width = max(map(len, package.sizes))
    out.print(*(f"  {name:<{width}}  {_size(size):>9}" for name, size in package.sizes.items()))
    out.print("", "whoever gets the adapter can read the rows in probe.json and the card, and see the pictures")
    out.print("", "the card; licences that the Hub states are filled in when it is pushed:", "", package.card)


def _size(size_bytes: int) -> str:
    return f"{size_bytes} B" if size_bytes < SMALL_BYTES else memory(size_bytes)
