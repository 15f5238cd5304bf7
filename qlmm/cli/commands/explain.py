"""``qlmm explain``: what an error's code means, what happened, and what to do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from qlmm.cli.arguments import AsJson, Markdown
from qlmm.cli.output.console import out

__all__ = ["explain"]

EXAMPLE = "Example: qlmm explain D005"


def explain(
    code: Annotated[str | None, typer.Argument(metavar="[CODE]", help="Code of an error; unset: all codes.")] = None,
    markdown: Markdown = False,
    as_json: AsJson = False,
) -> None:
    """Explain the code of an error."""
    from qlmm.core.error_index import index, meaning, page

    if markdown:
        out.stream(page())
    elif as_json:
        out.json([asdict(one) for one in (index().values() if code is None else [meaning(code)])])
    elif code is None:
        out.print(*(f"{one.code}  {one.title}" for one in index().values()))
    else:
        one = meaning(code)
        out.print(f"{one.code}: {one.title}", "", one.why, "", f"help: {one.do}")
