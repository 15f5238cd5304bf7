"""``entry.json``: what the zoo says about an adapter, in facts that were measured by its run.

Usage: ``entry = read_entry(Path("adapters_zoo/owl_kinds")); entry.result``
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from qlmm.core.errors import ModelError
from qlmm.core.units import share
from qlmm.proof.records import PairProof, PictureProof
from qlmm.recipe.zoo import ENTRY, shipped

__all__ = ["MOST_BYTES", "Entry", "Rebuilt", "Results", "entries", "read_entry"]

# A repository is cloned whole: weights beyond this belong on the Hub.
MOST_BYTES = 5_000_000

Line = Annotated[str, Field(min_length=1, max_length=160, pattern=r"^[^\n]+$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Results(_Facts):
    """What was measured on held-out rows before and after training; None where the run had no such rows."""

    before: PictureProof | None = None
    after: PictureProof | None = None
    pairs_before: PairProof | None = None
    pairs_after: PairProof | None = None


class Rebuilt(_Facts):
    """A second run of the recipe: whether it wrote the same weights, bit for bit, and the hash of those it wrote."""

    equal: bool
    sha256: Sha256


class Entry(_Facts):
    """One adapter of the zoo.

    Attributes:
        command: makes the adapter again.
        weights: ``here``, beside the entry.
        size_bytes: size of the weights.
        trained: parameters that were trained.
        base: the base's parts by role, as the recipe names them, and the connector of an assembled one.
        minutes: length of the run; None for a run that was interrupted and continued.
        machine: what the run computed on.
        rebuilt: None when nobody tried.
        licence: of the adapter, and of what it was made from.
    """

    version: Literal[1] = 1
    summary: Line
    command: Line
    weights: Literal["here"]
    size_bytes: PositiveInt
    trained: PositiveInt
    base: dict[str, str]
    results: Results
    minutes: PositiveFloat | None
    machine: Line
    rebuilt: Rebuilt | None = None
    licence: Line

    @model_validator(mode="after")
    def _worth_listing(self) -> Entry:
        if self.size_bytes > MOST_BYTES:
            raise ValueError(f"weights of {self.size_bytes} bytes belong on the Hub; {MOST_BYTES} may lie here")
        if self.results.after is None and self.results.pairs_after is None:
            raise ValueError("nothing was measured on held-out rows")
        return self

    @property
    def result(self) -> str:
        """The figure that says most, in words: pairs won, or what the right picture is worth."""
        pairs, losses = self.results.pairs_after, self.results.after
        if pairs is not None:
            before = self.results.pairs_before
            return f"pairs won {share(pairs.won)}" + (f", before {share(before.won)}" if before is not None else "")
        return f"gap {losses.gap:.2f} nats" if losses is not None else ""

    @property
    def size(self) -> str:
        """The size of the weights as people read it."""
        return f"{self.size_bytes / 1e6:.1f} MB"


def entries() -> dict[str, Entry]:
    """Every entry by name.

    Raises:
        ModelError: Z002 when one is damaged.
    """
    return {name: read_entry(folder) for name, folder in shipped().items()}


def read_entry(folder: Path) -> Entry:
    """Read one entry's facts.

    Raises:
        ModelError: Z002 when they cannot be read.
    """
    path = folder / ENTRY
    try:
        return Entry.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError.one("Z002", f"{path} cannot be read: {error.strerror}", help=_DAMAGED) from error
    except ValidationError as error:
        # The deepest says most: each form that a value can have complains of its own.
        first = max(error.errors(include_input=False), key=lambda one: len(one["loc"]))
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise ModelError.one("Z002", f"{path} is damaged: {place}: {first['msg']}", help=_DAMAGED) from error


_DAMAGED = "install qlmm again, or take the folder from the repository"
