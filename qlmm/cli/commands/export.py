"""``qlmm export``: an adapter made ready for another program; what gets lost is said before it starts.

Usage: ``export("runs/x", "vllm", Path("served"), onto="original", outtype="f16", converter=None, as_json=False)``
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from qlmm.cli.commands.zoo_app import from_zoo
from qlmm.cli.output.console import out, visible
from qlmm.cli.output.library_noise import quiet

__all__ = ["export"]


def export(
    adapter: str,
    to: str,
    folder: Path,
    *,
    onto: Literal["original", "trained"],
    outtype: str,
    converter: Path | None,
    as_json: bool,
) -> None:
    """Export an adapter, print the proof and the commands that use it.

    Args:
        adapter: adapter folder, run directory, Hub id or zoo:NAME.
        to: the target.
        folder: the folder to make.
        onto: which base is merged into.
        outtype: how GGUF files store weights.
        converter: llama.cpp's own converter.
        as_json: print one JSON object.

    Raises:
        QlmmError: whatever stands against it.
    """
    quiet()
    from qlmm.artifacts.export.export import Wishes
    from qlmm.artifacts.export.export import export as run

    made = run(_named(adapter), to, folder, Wishes(onto, outtype, converter), out.talk)
    if as_json:
        out.json(asdict(made) | {"folder": str(made.folder), "to": to})
        return
    out.print(f"exported for {to}: {visible(str(made.folder))}")
    for line in made.proof:
        out.print(f"proof: {visible(line)}")
    for line in made.commands:
        out.print(f"use: {visible(line)}")


def _named(adapter: str) -> str:
    """As it was typed, but for an entry of the zoo: a path would lose what tells it from a Hub id."""
    return str(from_zoo(Path(adapter))) if adapter.startswith("zoo:") else adapter
