"""``qlmm push``: an adapter to the Hub; ``--dry-run`` shows what would leave this machine and reaches for nothing.

Usage: ``push(Path("runs/owl_lora/adapter"), "user/name", settings=Settings(dry_run=True))``
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlmm.cli.output.console import out
from qlmm.core.units import memory

if TYPE_CHECKING:
    from qlmm.artifacts.hub.package import Package

__all__ = ["Settings", "push"]

SMALL_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """How an adapter is sent.

    Attributes:
        public: everybody may read it.
        dry_run: only show what would be sent.
        revision: branch to commit to.
        message: of the commit; None for one that names qlmm.
        unproven: send an adapter that proves nothing.
    """

    public: bool = False
    dry_run: bool = False
    revision: str = "main"
    message: str | None = None
    unproven: bool = False


def push(adapter: Path, repo: str, *, settings: Settings) -> None:
    """Send an adapter, or show what would be sent.

    Raises:
        QlmmError: whatever is wrong, for the command line's edge to print.
    """
    from qlmm.artifacts.adapter.manifest import read_manifest
    from qlmm.artifacts.hub.connection import checked_name

    checked_name(repo)
    read_manifest(adapter)
    _quiet()
    from qlmm.artifacts.hub.package import pack
    from qlmm.artifacts.hub.transfer import push as send

    package = pack(adapter, repo, unproven=settings.unproven)
    _warn(package)
    if settings.dry_run:
        _show(package, settings)
        return
    out.talk(f"pushing {len(package.items)} files, {_size(sum(item.size for item in package.items))}, to {repo}")
    pushed = send(package, public=settings.public, branch=settings.revision, message=settings.message, tell=out.talk)
    if not pushed.changed:
        out.talk("the same files were there already; nothing was changed")
    out.print(pushed.address, f"commit {pushed.commit}, {'private' if pushed.private else 'public'}")
    out.talk(f"fetch it with: qlmm pull {repo}@{pushed.commit}")


def _quiet() -> None:
    """No bars where nobody watches."""
    from qlmm.cli.output.library_noise import quiet

    quiet()
    if not out.interactive:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()


def _warn(package: Package) -> None:
    for name in package.left:
        out.warn(f"{name} is no part of an adapter and stays here")
    if package.local_base:
        out.warn("the base is a folder of this machine: nobody else can load this adapter until the base is shared too")
    if not package.proven:
        out.warn("this adapter is not proven; its card says so on top")


def _show(package: Package, settings: Settings) -> None:
    """Everything that would be sent, and the card word for word."""
    seen = "public" if settings.public else "private"
    out.print(f"would push to {package.repo} ({seen}), branch {settings.revision}; nothing is sent", "")
    width = max(len(item.name) for item in package.items)
    out.print(*(f"  {item.name:<{width}}  {_size(item.size):>9}" for item in package.items))
    out.print("", "whoever gets the adapter can read the rows in probe.json and the card, and see the pictures")
    out.print("", "the card; licences that the Hub states are filled in when it is pushed:", "", package.card)


def _size(size_bytes: int) -> str:
    return f"{size_bytes} B" if size_bytes < SMALL_BYTES else memory(size_bytes)
