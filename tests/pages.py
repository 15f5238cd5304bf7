"""The project's pages, and what stands in them: blocks of code by language, code in the running text.

Usage: ``[block.text for block in blocks("yaml")]``
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "blocks", "name_of", "spans"]

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "CHANGELOG.md",
    ROOT / "recipes" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "adapters_zoo").rglob("README.md")),
]
_BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def name_of(page: Path) -> str:
    """A page's path from the root."""
    return page.relative_to(ROOT).as_posix()


def blocks(language: str) -> list[Block]:
    """All fenced blocks in a language."""
    return list(_blocks(language))


def _blocks(language: str) -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text("utf-8")
        for found in _BLOCK.finditer(text):
            if found[1] == language:
                yield Block(name_of(page), text[: found.start()].count("\n") + 2, found[2])


def spans() -> list[Block]:
    """All code in the running text and in tables: what stands between single backticks."""
    found = []
    for page in PAGES:
        fenced = _BLOCK.sub(lambda block: "\n" * block[0].count("\n"), page.read_text("utf-8"))
        for number, line in enumerate(fenced.splitlines(), 1):
            found += [Block(name_of(page), number, one) for one in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", line)]
    return found
