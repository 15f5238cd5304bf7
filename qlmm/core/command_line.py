"""Command lines that are printed to be pasted: what data, paths and overrides have in them is never run by the shell.

Usage: ``ours("ask", adapter, question, image=picture)``
"""

from __future__ import annotations

import shlex

__all__ = ["line", "ours"]


def ours(command: str, *arguments: object, **options: object) -> str:
    """A command of qlmm as one line, options after the first argument; an option that is True is a flag."""
    words = [str(argument) for argument in arguments]
    flags = [word for name, value in options.items() for word in _option(name, value)]
    # An argument that begins with a dash is not an option.
    dash = next((place for place, word in enumerate(words) if word.startswith("-")), None)
    first = 1 if dash is None else min(1, dash)
    end = [] if dash is None else ["--"]
    return line("qlmm", *command.split(), *words[:first], *flags, *end, *words[first:])


def line(*words: object) -> str:
    """Words as one line for a shell, in which each is one word again."""
    return shlex.join(map(str, words))


def _option(name: str, value: object) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, str(value)]
