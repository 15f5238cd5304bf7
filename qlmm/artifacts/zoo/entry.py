"""One adapter of the zoo: what only the zoo knows of it, in ``entry.json``, and the manifest of its run.

Usage: ``entry = read_entry(Path("adapters_zoo/owl_kinds")); entry.result``
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qlmm.artifacts.adapter.manifest import Manifest, read_manifest
from qlmm.core.command_line import ours
from qlmm.core.errors import ModelError
from qlmm.core.filenames import ADAPTER_WEIGHTS
from qlmm.core.units import share
from qlmm.recipe.zoo import ENTRY, PREFIX, shipped

__all__ = ["Entry", "Facts", "Rebuilt", "entries", "read_entry"]


class Rebuilt(BaseModel):
    """A second run of the recipe: whether it wrote the same weights, bit for bit, and their hash."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    equal: bool
    sha256: str


class Facts(BaseModel):
    """``entry.json``.

    Attributes:
        minutes: length of the run; None for a run that was interrupted and continued.
        machine: what the run computed on.
        rebuilt: None when nobody tried.
        licence: of the adapter, and of what it was made from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    summary: str
    minutes: float | None
    machine: str
    rebuilt: Rebuilt | None = None
    licence: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One adapter of the zoo, in its folder."""

    folder: Path
    facts: Facts
    manifest: Manifest

    @property
    def command(self) -> str:
        """Makes the adapter again."""
        return ours("finetune", f"{PREFIX}{self.folder.name}")

    @property
    def base(self) -> dict[str, str]:
        """The base's parts by role, as the recipe names them, and the connector of an assembled one."""
        base = self.manifest.base
        parts: dict[str, str] = {role: part.id for role, part in base.parts.items()}
        return parts | ({"connector": base.connector.kind} if base.connector is not None else {})

    @property
    def result(self) -> str:
        """The most telling figure, in words: pairs won, or what the right picture is worth."""
        proof = self.manifest.proven_by
        if proof.pairs_after is not None:
            before = f", before {share(proof.pairs_before.won)}" if proof.pairs_before is not None else ""
            return f"pairs won {share(proof.pairs_after.won)}{before}"
        return f"gap {proof.after.gap:.2f} nats" if proof.after is not None else ""

    @property
    def size(self) -> str:
        """The size of the weights in megabytes, as text."""
        return f"{(self.folder / ADAPTER_WEIGHTS).stat().st_size / 1e6:.1f} MB"


def entries() -> dict[str, Entry]:
    """Every entry by name."""
    return {name: read_entry(folder) for name, folder in shipped().items()}


def read_entry(folder: Path) -> Entry:
    """The entry in a folder.

    Raises:
        ModelError: Z002 for facts that cannot be read, A002 for a damaged manifest.
    """
    try:
        facts = Facts.model_validate_json((folder / ENTRY).read_bytes())
    except (OSError, ValidationError) as error:
        help = "install qlmm again, or take the folder from the repository"
        raise ModelError.one("Z002", f"{folder / ENTRY} is damaged: {error}", help=help) from error
    return Entry(folder, facts, read_manifest(folder))
