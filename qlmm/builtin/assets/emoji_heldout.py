"""The held-out side of the emoji pictures: concepts that ``builtin:emoji`` does not hold in any variant.

Usage: ``evaluation.sources: [{path: "builtin:emoji-heldout"}]`` in a recipe
"""

from __future__ import annotations

from dataclasses import replace

from qlmm.builtin.assets import emoji

__all__ = ["PACKAGED"]

PACKAGED = replace(emoji.PACKAGED, entry="heldout.jsonl")
