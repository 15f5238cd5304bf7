"""Every command of the command line, found from the app itself, so that a new one is tested at once.

Usage: ``for words, command in commands(): print(words, command.params)``
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from qlmm.cli.app import app

__all__ = ["commands"]


def commands() -> dict[tuple[str, ...], Any]:
    """The commands by their words, such as ``("data", "check")``; groups themselves are none."""
    return dict(_below(get_command(app), ()))


def _below(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner = vars(command).get("commands")
    if inner is None:
        yield words, command
    for name, one in (inner or {}).items():
        yield from _below(one, (*words, name))
