"""The emoji pictures with the question what kind of thing they show, in one of eleven words: pictures to learn from.

Usage: ``path: "builtin:emoji-kinds"`` in a recipe
"""

from __future__ import annotations

from dataclasses import replace

from qlmm.builtin.assets import emoji

__all__ = ["PACKAGED"]

PACKAGED = replace(emoji.PACKAGED, entry="kinds-train.jsonl")
