"""``qlmm pull``: an adapter from the Hub, verified before it is there.

Usage: ``pull("user/name@commit", None)``
"""

from __future__ import annotations

from pathlib import Path

from qlmm.cli.output.console import out

__all__ = ["pull"]


def pull(name: str, folder: Path | None) -> None:
    """Fetch an adapter into a folder of its own.

    Raises:
        QlmmError: whatever is wrong, for the command line's edge to print.
    """
    from qlmm.artifacts.hub.connection import checked_name

    checked_name(name.partition("@")[0])
    from qlmm.cli.output.library_noise import quiet

    quiet()
    if not out.interactive:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    from qlmm.artifacts.hub.transfer import pull as fetch

    pulled = fetch(name, folder, tell=out.talk)
    if not pulled.proven:
        out.warn("this adapter is not proven; its card says what is known")
    out.print(str(pulled.folder))
    out.talk(f"{pulled.repo}@{pulled.commit}, verified: {pulled.files} files have the hashes that its qlmm.json names")
    out.talk(f'ask it with: qlmm ask {pulled.folder} --image picture.png "What is this?"')
