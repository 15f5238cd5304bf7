"""Pieces of a card: tables, and sections between marks that qlmm writes anew; all else belongs to the owner.

Usage: ``text = marked("data", data); text = renewed(text, "data", other_data)``
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["marked", "renewed", "table"]

# Comments, which no page shows.
_END = "<!-- qlmm: end -->"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; the cells are escaped already."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)


def marked(name: str, text: str) -> str:
    """A section between its marks."""
    return f"<!-- qlmm: {name}; every push writes this section anew -->\n\n{text}\n\n{_END}"


def renewed(body: str, name: str, text: str) -> str:
    """A card with one section written anew; a card without its marks stays as it is."""
    section = re.compile(rf"<!-- qlmm: {name};[^>]*-->(?:(?!<!-- qlmm:).)*{re.escape(_END)}", re.DOTALL)
    return section.sub(lambda _: marked(name, text), body)
