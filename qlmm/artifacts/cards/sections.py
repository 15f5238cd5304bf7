"""Sections of a card that qlmm writes anew: they stand between marks, and everything else belongs to the owner.

Usage: ``text = marked("data", table); text = renewed(text, "data", other_table, table)``
"""

from __future__ import annotations

import re

__all__ = ["between", "marked", "renewed"]

# Comments, which no page shows.
_END = "<!-- qlmm: end -->"


def marked(name: str, text: str) -> str:
    """A section between its marks."""
    return f"<!-- qlmm: {name}; every push writes this section anew -->\n\n{text}\n\n{_END}"


def between(body: str, name: str) -> str | None:
    """What stands between a section's marks; None where there are none."""
    found = _section(name).search(body)
    return found[0] if found is not None else None


def renewed(body: str, name: str, text: str, before: str) -> str:
    """A card with one section written anew.

    Args:
        body: the card's text; a section without marks is found by its words, and left alone when those were edited.
        name: of the section.
        text: what it says now.
        before: what it said when qlmm wrote it without marks.
    """
    new = marked(name, text)
    return _section(name).sub(lambda _: new, body) if between(body, name) else body.replace(before, new)


def _section(name: str) -> re.Pattern[str]:
    return re.compile(rf"<!-- qlmm: {name};[^>]*-->(?:(?!<!-- qlmm:).)*{re.escape(_END)}", re.DOTALL)
