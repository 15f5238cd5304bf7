"""Which rows a run learned from: counts of each source, and one hash over all of them.

Usage: ``DataFingerprint(loaded.fingerprint, loaded.sources).sha256``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

__all__ = ["DataFingerprint", "SourceCount"]


@dataclass(frozen=True, slots=True)
class SourceCount:
    """What one source gave."""

    path: str
    format: str
    weight: float
    rows: int
    kept: int
    text_only: int

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @property
    def bad(self) -> int:
        """Rows that were not taken."""
        return self.rows - self.kept


@dataclass(frozen=True, slots=True)
class DataFingerprint:
    """The rows of a run, as its record and its manifest name them.

    The hash is over the text of all samples and over name and size of their pictures, order included.
    """

    sha256: str
    sources: tuple[SourceCount, ...]

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
