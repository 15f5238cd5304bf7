"""Graphics cards by name, with the memory they are sold with.

Usage: ``card("RTX 4090").memory_bytes``
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qlmm.core.errors import UsageError
from qlmm.core.naming import close

__all__ = ["CARDS", "Card", "card"]

# What may stand beside the name of a card.
_BESIDE = re.compile(r"nvidia|geforce|rtx|tesla|hbm\d|pcie|sxm\d?|gb|[\s_-]")


@dataclass(frozen=True, slots=True)
class Card:
    """A card: its name, its memory, and whether it computes in bf16."""

    name: str
    gib: int
    bf16: bool = True

    @property
    def memory_bytes(self) -> int:
        """The memory it is sold with."""
        return self.gib << 30


CARDS = (
    Card("3060", 12),
    Card("4060 Ti", 16),
    Card("4070", 12),
    Card("4090", 24),
    Card("5090", 32),
    Card("T4", 16, bf16=False),
    Card("L4", 24),
    Card("A10G", 24),
    Card("A100 40GB", 40),
    Card("A100 80GB", 80),
    Card("H100 80GB", 80),
)


def card(name: str) -> Card:
    """The card of a name, with or without maker and memory; U041 for one that is not known."""
    bare = [_plain(one.name.removesuffix(f" {one.gib}GB")) for one in CARDS]
    known = {short: one for short, one in zip(bare, CARDS, strict=True) if bare.count(short) == 1}
    known |= {spelt: one for one in CARDS for spelt in (_plain(one.name), _plain(f"{one.name}{one.gib}"))}
    if (found := known.get(_plain(name))) is None:
        help = f"{close(name, [one.name for one in CARDS])}; for another card: --memory 12GB"
        raise UsageError.one("U041", f"--gpu: no card is known as `{name}`", help=help)
    return found


def _plain(name: str) -> str:
    return _BESIDE.sub("", name.lower())
